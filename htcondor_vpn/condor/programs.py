"""The programs that HTCondor runs for jobs, in a folder of their own: its configuration needs one path for each."""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_RUN = 'exec(__import__("marshal").load(open({compiled!r}, "rb")))\n'


def write_programs(folder: Path, programs: Mapping[str, Path], mode: int) -> None:
    """Writes an executable of `mode` for each name into `folder`, which gets that mode too; raises OSError.

    Each is made of a Python module of the standard library alone, or a script of bash. A module's executable is a line
    that runs its compiled form: compiling it anew for each job takes as long as half a start of the interpreter. That
    is named by a link beside it: its own path may be too long for a first line, or have blanks.
    """
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    python = folder / "python"
    python.unlink(missing_ok=True)
    # Of a virtual environment the Python below it: they need no packages, and looking for them takes time.
    python.symlink_to(os.path.realpath(sys.executable))
    for name, source in programs.items():
        program, text = folder / name, source.read_text(encoding="utf-8")
        if source.suffix == ".py":
            compiled = folder / f"{name}.code"
            compiled.write_bytes(marshal.dumps(compile(text, str(source), "exec", dont_inherit=True)))
            compiled.chmod(mode & 0o666)
            text = f"#!{python} -IS\n" + _RUN.format(compiled=str(compiled))
        program.write_text(text, encoding="utf-8")
        program.chmod(mode)
