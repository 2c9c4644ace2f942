"""The job wrapper's parts: which one of the site runs inside of it, and what it says where a job cannot be run."""

import os
import subprocess
import sys

import pytest

from htcondor_vpn.jobnet.wrapper import surroundings
from htcondor_vpn.jobnet.wrapper.text import write_reason


@pytest.mark.parametrize(
    ("of_settings", "of_glidein", "wanted"),
    [
        ("", None, []),
        ("/settings", None, ["/settings"]),
        ("", "/glidein", ["/glidein"]),
        ("/settings", "/the/job's", ["/settings"]),
    ],
)
def test_the_sites_own_wrapper(monkeypatch, of_settings, of_glidein, wanted):
    monkeypatch.setattr(surroundings, "environ", {} if of_glidein is None else {surroundings.CHAIN: of_glidein})
    assert surroundings.chained({"chain": of_settings}) == wanted
    assert surroundings.environ == {}, "the job does not see it"


@pytest.mark.parametrize("stderr", ["/dev/full", None], ids=["a full disk", "closed"])
def test_a_word_that_cannot_be_said_ends_nothing(stderr):
    """Not even the wrapper, of which the job's exit code is to become the own one."""
    code = "from htcondor_vpn.jobnet.wrapper.text import complain; complain('x'); raise SystemExit(7)"
    redirection = f"2>{stderr}" if stderr else "2>&-"
    argv = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, code]
    assert subprocess.run(argv, check=False).returncode == 7


def test_the_reason_may_name_what_is_no_text(tmp_path):
    name = os.fsdecode(b"/no/such/\xff")
    write_reason(str(tmp_path / "reason"), f"{name} cannot be executed")
    assert (tmp_path / "reason").read_bytes() == b"/no/such/\xff cannot be executed\n"


def test_a_reason_that_cannot_be_written_is_said(tmp_path, capfd):
    write_reason(str(tmp_path / "missing" / "reason"), "why")
    assert "cannot be written: No such file" in capfd.readouterr().err
