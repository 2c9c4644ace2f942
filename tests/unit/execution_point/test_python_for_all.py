from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.execution_point.daemon import require_for_all


@pytest.mark.parametrize("closed", [".", "bin", "bin/python3"])
def test_a_python_that_jobs_accounts_cannot_execute_is_refused(closed: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        python = home / "bin/python3"
        python.parent.mkdir()
        python.touch()
        for path in (home, python.parent, python):
            path.chmod(0o755)
        require_for_all(python)
        (home / closed).chmod(0o750)
        with pytest.raises(ProgramMissing, match=f"{home / closed} is closed"):
            require_for_all(python)
