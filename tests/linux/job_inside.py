"""A job in a network of its own, inside a pilot that is started for it alone."""

from __future__ import annotations

import sys
from pathlib import Path

_STARTER = Path(__file__).parent / "fake_starter.py"


def job_argv(folder: Path, *command: str) -> list[str]:
    """What `htcondor-vpn run` has to run so that `command` is a job there, with its scratch folder in `folder`.

    It prints what the job left, as JSON (`fake_starter.py`).
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    (scratch / ".job.ad").write_text('MyType = "Job"\nRequestCpus = 1\n')
    script = f'exec "$0" {_STARTER} "$HTCONDOR_VPN_RUN_DIR/libexec" {scratch} "$@"'
    return ["sh", "-c", script, sys.executable, *command]
