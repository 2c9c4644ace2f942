import signal

import pytest
from batch_side import directives
from batch_side.directives import Request

from htcondor_vpn.glidein.batch_script import Batch, BatchJob, script

JOB = BatchJob("glidein", ["true"], time_seconds=7300, lead_seconds=300, cpus=4)


def test_what_our_scripts_ask_for():
    asked = directives.slurm(script(Batch.SLURM, JOB))
    assert asked == Request("glidein", 7300, "", signal.SIGTERM, 300, True)
    assert directives.pbs(script(Batch.PBS, JOB)) == Request("glidein", 7300)


@pytest.mark.parametrize(
    ("time", "seconds"), [("5", 300), ("5:10", 310), ("1:00:00", 3600), ("2-1", 176400), ("1-0:1:1", 86461)]
)
def test_slurms_formats_of_a_time(time, seconds):
    assert directives.slurm(f"#!/bin/sh\n#SBATCH -t {time}\n").time_seconds == seconds


def test_comments_end_a_directive_and_a_command_ends_them_all():
    text = "#!/bin/sh\n# a word\n#SBATCH -t 1   # 'a minute\n\n#SBATCH --output='a b'\ntrue\n#SBATCH -t 2\n"
    assert directives.slurm(text) == Request("", 60, "a b")


@pytest.mark.parametrize(
    ("told", "warning"),
    [("TERM", (15, 60, False)), ("B:SIGUSR1@10", (10, 10, True)), ("B:15@300", (15, 300, True))],
)
def test_slurms_warnings(told, warning):
    asked = directives.slurm(f"#!/bin/sh\n#SBATCH -t 1 --signal={told}\n")
    assert (asked.warning_signal, asked.warning_seconds, asked.warns_shell) == warning


@pytest.mark.parametrize(
    "text", ["true\n", "#!/bin/sh\n#SBATCH --no-such-option\n", "#!/bin/sh\n#SBATCH -t 1 --signal=B:TERM@5m\n"]
)
def test_what_sbatch_refuses(text):
    with pytest.raises(ValueError, match=r".+"):
        directives.slurm(text)
