"""Temporary folders of pilots that were killed: their own processes remove them, or the next pilot on the node does."""

import base64
import contextlib
import os
import signal
import tarfile
import tempfile
from pathlib import Path

import pytest
from bundle_site import told_of
from shell_pilot import wait_until

from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.logs import wait_for_log

#: Stands in for HTCondor's: what it does is of no matter here.
MASTER = "#!/bin/sh\necho ready\nexec sleep 1000\n"
KINDS = pytest.mark.parametrize("kind", ["run", "condor"])
SMALL_FILES = 20_000


@pytest.fixture
def tmp():
    """What TMPDIR names on the node: pytest's own folders have too long names for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def condor(tmp_path):
    """A folder with HTCondor's master, and a token for a pool."""
    (tmp_path / "condor/sbin").mkdir(parents=True)
    master = tmp_path / "condor/sbin/condor_master"
    master.write_text(MASTER)
    master.chmod(0o755)
    token = tmp_path / "pool.token"
    token.touch(mode=0o600)
    token.write_text(".".join(["e30", base64.urlsafe_b64encode(b'{"sub":"pilot"}').decode().rstrip("="), "AA"]))
    return tmp_path / "condor"


@pytest.fixture
def start(site, gateway, tmp, condor, tmp_path):
    """Starts a pilot of a kind on the node, and returns its process and its log."""
    processes = []

    def start(kind, *options, condor=condor):
        log = tmp_path / f"log{len(processes)}"
        log.touch()
        options = [*map(str, told_of(gateway)), "-v", *options]
        if kind == "run":
            argv = vpn_command("run", *options, "--", "sh", "-c", "echo ready; exec sleep 1000")
        else:
            pool = ["--pool", "cm.site.example", "--idtoken", str(tmp_path / "pool.token")]
            argv = vpn_command("glidein", "condor", "--condor", str(condor), *pool, *options)
        processes.append(site.node.start(argv, log=log, env={"TMPDIR": str(tmp)}))
        return processes[-1], log

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def begun(site, start):
    """Starts one, waits until its command runs, and returns its process, and the ids of all of its processes."""

    def begin(kind, *options):
        before = set(site.processes_of_node())
        process, log = start(kind, *options)
        wait_for_log(log, b"^ready$", process)
        return process, log, set(site.processes_of_node()) - before

    return begin


def send(number, pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for_end_of(site, pids):
    wait_until(lambda: not pids & set(site.processes_of_node()))


def folders(tmp):
    return sorted(path.name.rpartition("-")[0] for path in tmp.iterdir())


OF_KIND = {"run": ["htcondor-vpn"], "condor": ["htcondor-vpn", "htvpn-pilot"]}


@KINDS
def test_all_processes_are_killed_and_the_next_pilot_removes_what_they_left(site, begun, tmp, kind):
    process, _, pids = begun(kind)
    send(signal.SIGSTOP, pids)  # so that none sees another end
    send(signal.SIGKILL, pids)
    process.wait()
    wait_for_end_of(site, pids)
    left = set(tmp.iterdir())
    assert folders(tmp) == OF_KIND[kind]
    process, log, pids = begun("run")
    for path in left:
        assert not path.exists()
        assert f"{path} is removed: a pilot of yours that was killed had left it" in log.read_text()
    assert folders(tmp) == OF_KIND["run"]
    other, _, more = begun("run")
    assert len(folders(tmp)) == 2, "that of a pilot that runs stays"
    for each in (process, other):
        each.terminate()
        each.wait(20)
    wait_for_end_of(site, pids | more)
    assert folders(tmp) == []


@KINDS
def test_the_supervisor_alone_is_killed_and_its_other_processes_remove_all(site, begun, tmp, kind):
    process, _, pids = begun(kind)
    assert folders(tmp) == OF_KIND[kind]
    process.kill()
    process.wait()
    wait_for_end_of(site, pids)
    assert folders(tmp) == []


def test_a_given_folder_is_the_next_ones_when_the_killed_ones_processes_have_ended(site, begun, start, tmp_path):
    run_dir = tmp_path / "run"
    process, _, pids = begun("run", "--run-dir", str(run_dir))
    send(signal.SIGSTOP, pids - {process.pid})
    process.kill()
    process.wait()
    process, log = start("run", "--run-dir", str(run_dir))

    def at_the_lock():
        found = []
        for path in (f"/proc/{process.pid}/fd/{name}" for name in os.listdir(f"/proc/{process.pid}/fd")):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(path))
        return str(run_dir / "run.lock") in found

    wait_until(at_the_lock)
    send(signal.SIGCONT, pids)
    wait_for_log(log, b"^ready$", process)
    wait_for_end_of(site, pids)
    assert (run_dir / "broker.sock").exists()
    assert (run_dir / "libexec/job-wrapper").exists()


@KINDS
def test_told_to_end_before_its_command_runs(site, start, gateway, tmp, kind):
    """Nobody answers at the gateway's address, so that it waits there."""
    process, log = start(kind, "--gateway", "192.0.2.1:1", "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=60")
    wait_until(lambda: folders(tmp) == OF_KIND[kind])
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM, log.read_text()
    assert folders(tmp) == []


def test_told_to_end_while_it_unpacks_htcondor(start, condor, tmp, tmp_path):
    tarball = tmp_path / "condor.tar"
    with tarfile.open(tarball, "w") as archive:
        for number in range(SMALL_FILES):
            archive.addfile(tarfile.TarInfo(f"condor/{number}"))
        archive.add(condor / "sbin", "sbin")
    process, log = start("condor", condor=tarball)
    wait_until(lambda: list(tmp.glob("*/condor")))
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM, log.read_text()
    assert folders(tmp) == []
