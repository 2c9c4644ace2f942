"""Jobs' networks as the broker wires them, and traffic of several jobs at once: what each of them gets.

A scenario runs in a process of its own, which becomes a pilot's inner namespace (`python -m` with a JSON object on
stdin, see `Scenario`); the far side is in it, so that nothing but the shaping limits anyone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from htcondor_vpn.addresses import INSIDE_JOB, PILOT_V4, PILOT_V6, job_link
from htcondor_vpn.jobnet.place import TUNNEL_MTU
from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.jobnet.wiring import Wiring
from htcondor_vpn.linux import links, namespaces
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import timed_traffic

PORT = 7001
#: What was lost while the connections found their speed has been sent again by then.
_WARM_UP_SECONDS = 2.0
_FRAME_BYTES, _TCP_BYTES = TUNNEL_MTU + 14, 32  # Ethernet; TCP with timestamps
_IP_BYTES = {4: 20, 6: 40}
_ORDINARY_UID = 1000


@dataclass(frozen=True)
class Run:
    """One measurement: `jobs` (all, if none are named) send (`up`) or receive, by so many connections each.

    `forged` is a job whose hardware address they take for it: no real job has the capability.
    """

    up: bool
    seconds: float = 3.0
    jobs: tuple[int, ...] = ()
    flows: int = 1
    version: int = 4
    forged: int | None = None


@dataclass(frozen=True)
class Scenario:
    """What the jobs may use together (Mbit/s, 0: no limit), what each may, and what is measured, one after another."""

    jobs: Sequence[Decision]
    runs: Sequence[Run]
    up_mbps: float = 0.0
    down_mbps: float = 0.0


def measure(scenario: Scenario, timeout_seconds: float = 300.0) -> list[dict[int, float]]:
    """Returns for each run what each of its jobs got, in Mbit/s on its link, headers included.

    Raises RuntimeError with what the process wrote to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name], input=json.dumps(asdict(scenario)), text=True, capture_output=True,
        timeout=timeout_seconds, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a scenario failed with {done.returncode}: {done.stderr}")
    return [{int(number): mbps for number, mbps in rates.items()} for rates in json.loads(done.stdout)]


def jain(rates: Iterable[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything."""
    values = list(rates)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


@contextmanager
def job_namespaces() -> Iterator[tuple[int, int]]:
    """A process with namespaces of its own, as a wrapper makes them; yields its user and network namespace."""
    ready, tell_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.new_user_namespace(namespaces.CLONE_NEWNET)
            os.write(tell_ready, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell_ready)
    try:
        if not os.read(ready, 1):
            raise RuntimeError("a job's namespaces could not be made")
        found = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net")]
        yield found[0], found[1]
        for descriptor in found:
            os.close(descriptor)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _start(argv: Sequence[object], inside: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-IS", timed_traffic.__file__, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: enter(inside))


def enter(inside: tuple[int, ...]) -> None:
    """Moves the calling (forked) process into these namespaces."""
    for descriptor in inside:
        namespaces.setns(descriptor)


def _forge(address: bytes, inside: tuple[int, ...]) -> None:
    """Gives the job's end of a link that hardware address."""

    def enter_with_capabilities() -> None:
        enter(inside)
        namespaces.capabilities_to_programs()

    command = [find_program("ip", "iproute2"), "link", "set", INSIDE_JOB, "address", address.hex(":")]
    subprocess.run(command, preexec_fn=enter_with_capabilities, check=True, timeout=10)


def _run(run: Run, jobs: Mapping[int, tuple[int, int]]) -> dict[int, float]:
    address = PILOT_V4 if run.version == 4 else PILOT_V6
    active = run.jobs or tuple(jobs)
    if run.forged is not None:
        for number in active:
            _forge(job_link(run.forged).job_hardware, jobs[number])
    begin = time.monotonic() + _WARM_UP_SECONDS + 0.1 * len(active)
    argv = ["put" if run.up else "get", address, PORT, begin, begin + run.seconds, run.flows]
    clients = {number: _start(argv, jobs[number]) for number in active}
    rates = {}
    for number, client in clients.items():
        out, _ = client.communicate(timeout=run.seconds + 60)
        if client.returncode:
            raise RuntimeError(f"the traffic of job {number} failed with {client.returncode}")
        payload = TUNNEL_MTU - _IP_BYTES[run.version] - _TCP_BYTES
        rates[number] = int(out) * 8e-6 / run.seconds * _FRAME_BYTES / payload
    return rates


def be_pilot() -> None:
    """Makes the calling process a pilot's, in inner namespaces of its own with the pilot's addresses; no threads."""
    if os.getuid() == 0:  # the root of a sandbox: a pilot is an ordinary user
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        namespaces.map_own_ids(0, 0, inside_uid=_ORDINARY_UID, inside_gid=_ORDINARY_UID)
    namespaces.new_user_namespace(namespaces.CLONE_NEWNET)
    with Netlink() as netlink:
        lo = links.LOOPBACK_INDEX
        netlink.do([links.set_up(lo), links.add_address(lo, PILOT_V4, 32), links.add_address(lo, PILOT_V6, 128)])


def _measured(scenario: Scenario) -> list[dict[int, float]]:
    be_pilot()
    wiring = Wiring(scenario.up_mbps, scenario.down_mbps, mtu=TUNNEL_MTU, end_here=True)
    wiring.open()
    with ExitStack() as exits:
        far_side = _start(["serve", PILOT_V4, PILOT_V6, PORT])
        exits.callback(far_side.wait)
        exits.callback(far_side.kill)
        assert far_side.stdout is not None
        exits.enter_context(far_side.stdout)
        if not far_side.stdout.readline():
            raise RuntimeError("the far side does not listen")
        jobs = {}
        for number, decision in enumerate(scenario.jobs):
            jobs[number] = exits.enter_context(job_namespaces())
            wiring.connect(number, jobs[number][1], decision, ("ipv4", "ipv6"))
        wiring.rebalance()
        return [_run(run, jobs) for run in scenario.runs]


def _parse(text: str) -> Scenario:
    told: dict[str, Any] = json.loads(text)
    jobs = [
        Decision(**{**job, "up": Share(**job["up"]), "down": Share(**job["down"])}) for job in told.pop("jobs")
    ]  # fmt: skip
    runs = [Run(**{**run, "jobs": tuple(run["jobs"])}) for run in told.pop("runs")]
    return Scenario(jobs, runs, **told)


if __name__ == "__main__":
    json.dump(_measured(_parse(sys.stdin.read())), sys.stdout)
