"""The programs that HTCondor runs for jobs, in a folder of their own: its configuration needs one path for each."""

from __future__ import annotations

import ast
import marshal
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType

_RUN = 'for part in __import__("marshal").load(open({compiled!r}, "rb")): exec(part)\n'


def write_programs(folder: Path, programs: Mapping[str, Path], mode: int) -> None:
    """Writes an executable of `mode` for each name into `folder`, which gets that mode too; raises OSError.

    Each is made of a Python module of the standard library alone, of a package of such modules with a `__main__`, or of
    a script of bash. What is of Python has for its executable a line that runs its compiled form, a package's modules
    in one: compiling it anew for each job takes as long as half a start of the interpreter, and a look for each module
    on the disk some more. The interpreter is named by a link beside it: its own path may be too long for a first line,
    or have blanks. The locale is the job's, and no business of the interpreter, which may lack its encoding.
    """
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    python = folder / "python"
    python.unlink(missing_ok=True)
    # Of a virtual environment the Python below it: they need no packages, and looking for them takes time.
    python.symlink_to(os.path.realpath(sys.executable))
    for name, source in programs.items():
        program = folder / name
        if source.is_dir() or source.suffix == ".py":
            compiled = folder / f"{name}.code"
            compiled.write_bytes(marshal.dumps(compiled_parts(source)))
            compiled.chmod(mode & 0o666)
            text = f"#!{python} -ISXutf8\n" + _RUN.format(compiled=str(compiled))
        else:
            text = source.read_text(encoding="utf-8")
        program.write_text(text, encoding="utf-8")
        program.chmod(mode)


def compiled_parts(source: Path) -> list[CodeType]:
    """Compiles a module, or a package's `__main__` and the modules that it needs, those that are needed first.

    They are to be executed one after the other with the same global names: what a module of the package imports from
    another (`from package.module import name`, and in no other way) is there already. So no two of them may have a name
    of their own that is the same. Raises OSError, and ValueError for an import that cannot be had so.
    """
    if source.is_file():
        return [compile(source.read_bytes(), str(source), "exec", dont_inherit=True)]
    return list(_parts(source, "__main__", set()))


def _parts(package: Path, name: str, done: set[str]) -> Iterator[CodeType]:
    done.add(name)
    path = package / f"{name}.py"
    tree, body = ast.parse(path.read_bytes(), str(path)), []
    for node in tree.body:
        of = node.module.split(".") if isinstance(node, ast.ImportFrom) and node.module else []
        if of[-2:-1] != [package.name]:
            body.append(node)
            continue
        assert isinstance(node, ast.ImportFrom)
        if any(alias.asname for alias in node.names):
            raise ValueError(f"{path}:{node.lineno}: in a program of several modules nothing gets another name")
        if of[-1] not in done:
            yield from _parts(package, of[-1], done)
    tree.body = body
    yield compile(tree, str(path), "exec", dont_inherit=True)
