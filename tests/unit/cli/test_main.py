"""The command itself: what a mistake on the command line says."""

from __future__ import annotations

import pytest

from htcondor_vpn.cli.main import main


@pytest.mark.parametrize(
    ("argv", "begins", "ends"),
    [
        (["run", "--gatway", "--", "true"], "run: unrecognized arguments: --gatway", "see `htcondor-vpn run --help`"),
        (["job", "lst"], "job: argument NOUN: invalid choice: 'lst'", "see `htcondor-vpn job --help`"),
        (["frob"], "argument NOUN: invalid choice: 'frob'", "see `htcondor-vpn --help`"),
        ([], "the following arguments are required: NOUN", "see `htcondor-vpn --help`"),
    ],
)
def test_a_mistake_names_the_help_that_has_the_answer(argv, begins, ends, capsys):
    assert main(argv) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"htcondor-vpn: {begins}")
    assert line.endswith(ends)
