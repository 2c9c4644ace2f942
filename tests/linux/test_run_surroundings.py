"""`htcondor-vpn run` started from odd surroundings: what COMMAND inherits, and what is said where it cannot start."""

import shlex
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from htcondor_vpn.testbed.logs import wait_for_log


@pytest.fixture
def shell(site, gateway):
    """Runs a line of shell on the node in which RUN stands for `htcondor-vpn run … -- sh -c COMMAND`."""

    def shell(line, command="true", **more):
        run = shlex.join(gateway.run_argv(["sh", "-c", command]))
        before = set(site.processes())
        done = site.node.run(["bash", "-c", line.replace("RUN", run)], **more)
        assert set(site.processes()) <= before  # of which some may have been ending
        return done

    return shell


def test_command_inherits_no_descriptor_of_ours(site, gateway):
    """The engine's listening sockets above all: who holds one can take the connections of others."""
    done = site.node.run(gateway.run_argv(["ls", "/proc/self/fd"]))
    assert set(done.stdout.split()) == {"0", "1", "2", "3"}  # the last one is that of the listing


def test_closed_standard_descriptors_are_closed_for_command_too(site, gateway):
    run = gateway.run_argv(
        [sys.executable, "-Sc", "import os; os.write(2, ' '.join(sorted(os.listdir('/proc/self/fd'))).encode())"]
    )
    done = site.node.run(["bash", "-c", '"$@" <&- >&-', "bash", *run])
    assert done.returncode == 0
    assert done.stderr == "0 2"  # the former is that of the listing


def test_a_parent_that_ignores_its_children(site, gateway):
    """SIGCHLD ignored has the kernel throw their statuses away; COMMAND finds it so, as after any exec."""
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    asked = "import signal, sys; sys.exit(40 + (signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN))"
    run = gateway.run_argv([sys.executable, "-c", asked])
    done = site.node.run([sys.executable, "-c", code, *run])
    assert (done.returncode, done.stderr) == (41, "")


def test_a_hangup_that_is_ignored_does_not_end_the_start(site, gateway, tmp_path):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    run = gateway.run_argv(["true"], "--gateway", "10.1.0.1:9", "--run-dir", str(run_dir), "-v")
    process = site.node.start(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *run], log=log)
    wait_for_log(log, b"is connecting", process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("ulimit -n 16; RUN", 83, "ulimit -n"),
        ("ulimit -u 1; RUN", 83, "ulimit -u"),
        ("mkdir gone; cd gone; rmdir ../gone; RUN", 126, "the current folder does not exist any more"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(shell, tmp_path, line, code, words):
    temporary = Path(tempfile.mkdtemp())  # a short path, or /tmp would be taken instead
    done = shell(line, cwd=tmp_path, env={"TMPDIR": str(temporary)})
    assert done.returncode == code, done.stderr
    (said,) = done.stderr.splitlines()
    assert words in said
    temporary.rmdir()


def test_an_empty_command_is_not_found(site, gateway):
    assert site.node.run(gateway.run_argv([""])).returncode == 127


@pytest.fixture
def etc(site, tmp_path):
    """The node's /etc, a copy without resolv.conf, for others to fill."""
    copy = tmp_path / "etc"
    copy.mkdir(mode=0o755)
    script = f"cp /etc/passwd /etc/hosts /etc/nsswitch.conf {copy}/; mount --bind {copy} /etc"
    site.node.run(["sh", "-c", script], as_root=True, check=True)
    yield copy
    site.node.run(["umount", "/etc"], as_root=True, check=True)


LOOK_UP = "getent ahostsv4 http.site.example | head -n 1"


def test_resolv_conf_that_leads_into_a_name_service(site, services, shell, etc):
    service = "/run/systemd/resolve"
    script = f"mkdir -p {service}; echo nameserver 127.0.0.53 > {service}/stub-resolv.conf"
    site.node.run(["sh", "-c", script], as_root=True, check=True)
    (etc / "resolv.conf").symlink_to(f"..{service}/stub-resolv.conf")
    done = shell("RUN", LOOK_UP)
    site.node.run(["rm", f"{service}/stub-resolv.conf"], as_root=True, check=True)
    assert "203.0.113.20" in done.stdout


@pytest.mark.parametrize("link", [None, "nowhere/resolv.conf", "resolv.conf"])
def test_resolv_conf_that_cannot_be_replaced(site, shell, etc, link):
    if link:
        (etc / "resolv.conf").symlink_to(link)
    site.node.run(["mount", "-o", "remount,bind,ro", "/etc"], as_root=True, check=True)
    done = shell("RUN", LOOK_UP)
    assert done.returncode == 71, done.stderr
    (said,) = done.stderr.splitlines()
    assert "resolv.conf" in said
    assert "be it empty" in said
