"""What keeps a tunnel for a glidein ends when the glidein does."""

import signal
import subprocess
import sys

import pytest

from htcondor_vpn.cli.main import main

HOLD = "import sys; from htcondor_vpn.glidein.hold import hold; hold(int(sys.argv[1]), lambda: print('up', flush=True))"


@pytest.fixture
def glidein():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_it_ends_with_the_glidein_and_not_by_signals(glidein):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(glidein.pid)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"up\n"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            holder.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            holder.wait(0.2)
        glidein.kill()
        glidein.wait()
        assert holder.wait(60) == 0


def test_a_glidein_that_has_ended_before(glidein):
    glidein.kill()
    glidein.wait()
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(glidein.pid)], capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b""


def test_without_a_tunnel_there_is_nothing_to_hold(monkeypatch, capsys):
    monkeypatch.delenv("HTCONDOR_VPN_RUN_DIR", raising=False)
    assert main(["glidein", "hold", "1"]) == 64
    assert "no tunnel" in capsys.readouterr().err
