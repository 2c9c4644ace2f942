"""What a job may not have run outside of its network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.condor.job_ad import parse_ad
from htcondor_vpn.jobnet.confinement import _assignments, _quoted, put_off, require_confined
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.jobnet.wrapper.surroundings import LATER


@pytest.mark.parametrize("name", ["PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins"])
@pytest.mark.parametrize("value", ['"program"', 'strcat("pro", "gram")', "7"])
def test_program_beside_the_job_is_refused(name: str, value: str) -> None:
    with pytest.raises(Refusal, match=name) as refused:
        require_confined(parse_ad(f"{name} = {value}"))
    assert refused.value.sub_code == SubCode.RUNS_OUTSIDE


@pytest.mark.parametrize("text", ["", "PreCmd = undefined", 'PreCmd = ""', "PreCmdIsNot = 7"])
def test_job_without_any_is_not_refused(text: str) -> None:
    require_confined(parse_ad(text))


@pytest.mark.parametrize(
    ("ad", "lines"),
    [
        ("", ""),
        ('Environment = ""', ""),
        ('Environment = "A=1 B=2"', ""),
        ('Environment = "OLD_PATH=1 XLD_PRELOADS=2"', ""),
        ('Environment = "A=1 LD_PRELOAD=x.so"', f'Environment = "A=1 {LATER}LD_PRELOAD=x.so"\n'),
        ('Environment = "\'LD_AUDIT=a b\' A=\'it\'\'s\'"', f'Environment = "\'{LATER}LD_AUDIT=a b\' \'A=it\'\'s\'"\n'),
        ('Environment = "L\'D_\'PRELOAD=x"', f'Environment = "{LATER}LD_PRELOAD=x"\n'),
        ('Environment = "\tLD_PRELOAD=x  "', f'Environment = "{LATER}LD_PRELOAD=x"\n'),
        ('Environment = "A=\\"q\\" GLIBC_TUNABLES=x"', f'Environment = "A=\\"q\\" {LATER}GLIBC_TUNABLES=x"\n'),
        ('Env = "A=1;LD_PRELOAD=x.so"', f'Env = "A=1;{LATER}LD_PRELOAD=x.so"\n'),
        ('Env = "A=1|LD_PRELOAD=x.so"\nEnvDelim = "|"', f'Env = "A=1|{LATER}LD_PRELOAD=x.so"\n'),
    ],
)
def test_what_the_loader_obeys_is_put_off(ad: str, lines: str) -> None:
    assert put_off(parse_ad(ad)) == lines


@pytest.mark.parametrize("text", ['Environment = strcat("LD_", "PRELOAD=x")', "Environment = \"'LD_PRELOAD=x\""])
def test_environment_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        put_off(parse_ad(text))


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)))
def test_assignments_are_written_as_they_are_read(words: list[str]) -> None:
    assert list(_assignments(" ".join(map(_quoted, words)))) == words
