"""What becomes of a job, its network and its account when one of the processes around it is killed, or stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jobnet_pilot import HERE, Pilot, finished, until
from resends import between

from htcondor_vpn.jobnet import service
from htcondor_vpn.jobnet.protocol import Connection, Message, readable
from htcondor_vpn.linux import ancestry

pytestmark = pytest.mark.linux

CLIENT = (sys.executable, str(HERE / "traffic_client.py"))


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path) as pilot:
        yield pilot


def test_many_jobs_at_once_and_nothing_left(pilot: Pilot) -> None:
    assert pilot.run_job("/bin/true")["status"] == 0
    descriptors = Path(f"/proc/{pilot.broker_pid}/fd")
    assert until(lambda: not pilot.links())
    before = len(list(descriptors.iterdir()))
    starters = [pilot.start_job(*CLIENT, "get", "100000") for _ in range(20)]
    for starter in starters:
        told = finished(starter)
        assert told["status"] == 0, told["err"]
        assert int(told["chirped"]["ChirpNetworkBytesIn"]) >= 100000
    assert until(lambda: not pilot.links())
    assert until(lambda: len(list(descriptors.iterdir())) < before + 10)  # half of one for each job
    assert until(lambda: set(ancestry.processes_within(pilot.inner)) <= _own(pilot))


def _own(pilot: Pilot) -> set[int]:
    return {pilot.broker_pid, pilot._holder, pilot._peer.pid}


def _running_job(pilot: Pilot, ad: str = "VpnBandwidthMbps = 10") -> tuple[subprocess.Popen[bytes], int, int]:
    """A job that has a child in a session of its own. Returns the starter, and the pids of wrapper and job."""
    scratch = pilot.scratch(ad)
    starter = pilot.start_job(
        "/bin/sh", "-c", "setsid sleep 1000 & echo $$ > job.tmp; mv job.tmp job; sleep 1000; true", scratch=scratch
    )
    assert until((scratch / "job").exists), starter.communicate(timeout=60)
    _, wrapper = (int(pid) for pid in (scratch / "pids").read_text().split())
    return starter, wrapper, int((scratch / "job").read_text())


def _sockets(pid: int) -> set[str]:
    """The process' sockets by their inodes."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            found.add(os.readlink(path))
    return {link for link in found if link.startswith("socket:")}


def test_nothing_is_left_when_the_wrapper_is_killed(pilot: Pilot) -> None:
    starter, wrapper, _ = _running_job(pilot)
    assert len(pilot.links()) == 1
    os.kill(wrapper, signal.SIGKILL)
    assert finished(starter)["status"] == -signal.SIGKILL
    assert until(lambda: not pilot.links() and set(ancestry.processes_within(pilot.inner)) <= _own(pilot))


def test_nothing_is_left_when_the_starter_is_killed(pilot: Pilot) -> None:
    starter, _, _ = _running_job(pilot)
    starter.kill()
    starter.communicate(timeout=60)
    assert until(lambda: not pilot.links() and set(ancestry.processes_within(pilot.inner)) <= _own(pilot))


def test_job_that_is_killed_ends_as_killed(pilot: Pilot) -> None:
    starter, _, job = _running_job(pilot)
    os.kill(job, signal.SIGKILL)
    # what it left in the background is HTCondor's to end; it has no network any more
    assert until(lambda: not pilot.links())
    for pid in set(ancestry.processes_within(pilot.inner)) - _own(pilot) - {starter.pid}:
        os.kill(pid, signal.SIGKILL)
    assert finished(starter)["status"] == -signal.SIGKILL


def test_job_goes_on_while_the_broker_is_replaced(pilot: Pilot) -> None:
    scratch = pilot.scratch("VpnBandwidthMbps = 100")
    go = scratch / "go"
    os.mkfifo(go)
    client = " ".join((*CLIENT, "get 1000000"))
    starter = pilot.start_job("/bin/sh", "-c", f"{client} && touch first && read x < go && {client}", scratch=scratch)
    assert until((scratch / "first").exists)
    links = pilot.links()
    pilot.kill_broker()
    pilot.start_broker()
    assert until(lambda: "was taken over" in pilot.log()), pilot.log()
    assert pilot.links() == links
    go.write_text("go\n")
    told = finished(starter)
    assert told["status"] == 0, told["err"]
    resent = pilot.resends.segments()
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) == between(2_000_000, 2_100_000, resent)
    assert until(lambda: not pilot.links())


def test_job_goes_on_when_the_new_broker_answers_too_late(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was stopped for a while does: the wrapper has given up by then, and comes again."""
    send = service._send
    late = []

    async def send_too_late(connection: Connection, message: Message, descriptors: tuple[int, ...] = ()) -> None:
        if not late:
            late.append(connection)
            await readable(connection.socket.fileno())  # at its end: the wrapper says nothing before it has an answer
        await send(connection, message, descriptors)

    scratch = pilot.scratch()
    go = scratch / "go"
    os.mkfifo(go)
    starter = pilot.start_job("/bin/sh", "-c", "touch first && read x < go", scratch=scratch)
    assert until((scratch / "first").exists)
    pilot.kill_broker()
    monkeypatch.setattr(service, "_send", send_too_late)
    pilot.start_broker()
    assert until(lambda: "connection broke" in pilot.log()), pilot.log()
    go.write_text("go\n")
    told = finished(starter)
    assert told["status"] == 0, told["err"]
    assert "ChirpNetworkBytesIn" in told["chirped"], pilot.log()


def test_job_outlives_a_broker_that_is_stopped_while_it_takes_over(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time in which wrappers have to come is over, and its wrapper has given up two connections meanwhile."""
    monkeypatch.setattr("htcondor_vpn.jobnet.service.GRACE_SECONDS", 8.0)
    scratch = pilot.scratch()
    os.mkfifo(scratch / "go")
    client = " ".join((*CLIENT, "get 1000000"))
    starter = pilot.start_job("/bin/sh", "-c", f"touch first && read x < go && {client}", scratch=scratch)
    assert until((scratch / "first").exists)
    _, wrapper = (int(pid) for pid in (scratch / "pids").read_text().split())
    os.kill(wrapper, signal.SIGSTOP)
    pilot.kill_broker()
    pilot.start_broker()
    os.kill(pilot.broker_pid, signal.SIGSTOP)
    try:
        before, seen = _sockets(wrapper), set()
        os.kill(wrapper, signal.SIGCONT)

        def given_up_two() -> bool:
            seen.update(_sockets(wrapper))
            return len(seen - before) >= 3

        assert until(given_up_two)
    finally:
        os.kill(pilot.broker_pid, signal.SIGCONT)
    assert until(lambda: "was taken over" in pilot.log()), pilot.log()
    (scratch / "go").write_text("go\n")
    told = finished(starter)
    assert told["status"] == 0, told["err"]
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) >= 1_000_000


def test_job_that_ends_while_there_is_no_broker_is_still_counted(pilot: Pilot) -> None:
    scratch = pilot.scratch()
    go = scratch / "go"
    os.mkfifo(go)
    client = " ".join((*CLIENT, "get 1000000"))
    starter = pilot.start_job("/bin/sh", "-c", f"{client} && touch first && read x < go", scratch=scratch)
    assert until((scratch / "first").exists)
    pilot.kill_broker()
    go.write_text("go\n")
    pilot.start_broker()
    told = finished(starter)
    assert told["status"] == 0
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) >= 1_000_000


def test_everything_inside_is_killed_with_the_supervisor(pilot: Pilot) -> None:
    starter, wrapper, _ = _running_job(pilot)
    pilot.control.close()
    _, status = os.waitpid(pilot.broker_pid, 0)
    pilot.broker_pid = 0
    assert status == 0, pilot.log()
    starter.communicate(timeout=60)
    assert starter.returncode == -signal.SIGKILL
    assert until(lambda: wrapper not in set(ancestry.processes_within(pilot.inner)))


def test_links_that_nobody_claims_are_removed(pilot: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    starter, wrapper, _ = _running_job(pilot)
    pilot.kill_broker()
    os.kill(wrapper, signal.SIGKILL)
    monkeypatch.setattr("htcondor_vpn.jobnet.service.GRACE_SECONDS", 0.5)
    pilot.start_broker()
    assert until(lambda: not pilot.links())
    for pid in set(ancestry.processes_within(pilot.inner)) - _own(pilot) - {starter.pid}:
        os.kill(pid, signal.SIGKILL)
    finished(starter)


def test_end_of_a_wrapper_is_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrapper ends on the broker's last word, maybe before the broker goes on: its totals are not sent again."""
    send = service._send

    async def send_and_rest(*arguments: Any) -> None:
        await send(*arguments)
        await asyncio.sleep(0.2)

    monkeypatch.setattr(service, "_send", send_and_rest)
    with Pilot(tmp_path) as pilot:
        assert pilot.run_job("/bin/true")["status"] == 0
        assert until(lambda: " ended: " in pilot.log())
        assert until(lambda: not pilot.links())
        assert "was killed" not in pilot.log()
