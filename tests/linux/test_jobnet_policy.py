"""A policy file decides, with a real broker, hook and wrapper."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jobnet_pilot import TRAFFIC_PORT, Pilot, finished, until

from htcondor_vpn.addresses import PILOT_V4
from htcondor_vpn.errors import PolicyError, ProgramMissing
from htcondor_vpn.jobnet.policy import policy as policies

pytest.importorskip("classad2", reason="a policy file needs HTCondor's Python bindings")
pytestmark = pytest.mark.linux

RULES = """
[class near]
destinations = 127.0.0.0/8

[network narrow]
through = tunnel
allow = 192.0.2.0/24

[rule sent-away]
when = TARGET.Owner == "eve"
requeue = eve runs elsewhere

[rule held]
when = TARGET.Owner == "mallory"
hold = mallory has to ask us first

[rule big]
when = TARGET.Owner == "alice" && TARGET.RequestCpus >= 4
up_mbps = 2 * TARGET.RequestCpus
down_mbps = 3 * MY.Cpus
max_down_mbps = 100
network = tunnel, narrow, none

[rule host]
when = TARGET.Owner == "henry"
network = host

[rule nameless]
when = TARGET.Owner == "nora"
deny = no-such-name.invalid

[rule undecidable]
when = TARGET.Owner == "ulla"
up_mbps = 10 * TARGET.NoSuchAttribute

[rule the-rest]
up_mbps = 1
down_mbps = 1
flight_recorder = never
"""
ALICE = 'Owner = "alice"\nRequestCpus = 4\n'


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    policy = tmp_path / "policy"
    policy.write_text(RULES)
    with Pilot(tmp_path, job_policy_file=str(policy)) as pilot:
        yield pilot


def start(pilot: Pilot, *command: str, ad: str, seconds: float = 0, later: str = "") -> tuple[Any, Path]:
    """Starts a job behind its prepare hook; returns it and its scratch folder."""
    scratch = pilot.scratch(ad)
    (scratch / ".machine.ad").write_text("Cpus = 8\n")
    if later:
        (scratch / "later.ad").write_text(later)
    return pilot.start_job("--prepared", str(seconds), *command, scratch=scratch), scratch


def run(pilot: Pilot, ad: str, *command: str, **more: Any) -> dict[str, Any]:
    return finished(start(pilot, *(command or ("/bin/true",)), ad=ad, **more)[0])


def test_a_rule_decides_from_both_ads(pilot: Pilot) -> None:
    assert run(pilot, ALICE)["status"] == 0
    assert "by big, up 8, down 24 Mbit/s" in pilot.log()


def test_the_last_rule_decides_for_others(pilot: Pilot) -> None:
    assert run(pilot, 'Owner = "alice"\nRequestCpus = 2')["status"] == 0
    assert "by the-rest, up 1, down 1 Mbit/s" in pilot.log()


def test_limits_of_a_rule_are_in_the_kernel(pilot: Pilot) -> None:
    job, _ = start(pilot, "/bin/sleep", "1000", ad=ALICE)
    try:
        assert until(lambda: "by big, up 8, down 24 Mbit/s" in pilot.log())
        for link, ceiling in (("htvup", "ceil 8Mbit"), ("htvdown", "ceil 24Mbit")):
            show = partial(pilot.output, "/usr/sbin/tc", "class", "show", "dev", link)
            assert until(lambda: ceiling in show()), show()  # noqa: B023  (it is called at once)
    finally:
        job.terminate()
        job.communicate(timeout=60)


@pytest.mark.parametrize(
    ("ad", "code", "says"),
    [
        (ALICE + "VpnDownMbps = 101", 4, "at most 100 Mbit/s"),
        (ALICE + "VpnUpMbps = 8.01", 4, "at most 8 Mbit/s"),
        (ALICE + "VpnUpMbps = 10 * RequestCpus", 4, "VpnUpMbps is 40;"),
        (ALICE + "VpnUpMbps = 1/0", 1, "VpnUpMbps is error"),
        (ALICE + 'VpnNetwork = "host"', 8, 'may have \\"tunnel\\" or \\"narrow\\" or \\"none\\"'),
        ("VpnFlightRecorder = true", 9, "may not have a flight recorder"),
        ('Owner = "mallory"', 11, "mallory has to ask us first (rule held)"),
        ('Owner = "eve"', 305, "eve runs elsewhere (rule sent-away)"),
        ('Owner = "henry"', 304, "network host, which there is not on this node"),
        ('Owner = "nora"', 303, "no-such-name.invalid"),
        ('Owner = "ulla"', 302, "up_mbps = 10 * TARGET.NoSuchAttribute (of rule undecidable) is undefined"),
        ("this is no ad", 5, "this is no ad"),
        ("A = (1", 5, "A = (1"),
    ],
)
def test_job_that_cannot_run_so(pilot: Pilot, ad: str, code: int, says: str) -> None:
    told = run(pilot, ad)
    assert told["status"] == -1
    assert told["out"].startswith(f"HookStatusCode = {code}\n")
    assert says in told["out"]


def test_ad_that_crashes_its_reader_holds_that_job_and_no_other(pilot: Pilot) -> None:
    assert run(pilot, f"A = {'1+' * 2_000_000}1")["out"].startswith("HookStatusCode = 10\n")
    chain = "\n".join(f"A{i} = A{i + 1} + A{i + 1}" for i in range(60))
    told = run(pilot, f"{ALICE}{chain}\nA60 = 1\nVpnUpMbps = A0")
    assert told["out"].startswith(("HookStatusCode = 10\n", "HookStatusCode = 1\n"))
    assert run(pilot, ALICE)["status"] == 0


def test_a_job_cannot_bring_another_ad(pilot: Pilot) -> None:
    told = run(pilot, 'Owner = "bob"\nGlobalJobId = "a#1.0#1"', later=ALICE + "VpnUpMbps = 8\n")
    assert told["status"] == 0
    assert "by the-rest, up 1, down 1 Mbit/s" in pilot.log()


def test_a_job_without_a_hook_does_not_run(pilot: Pilot) -> None:
    told = pilot.run_job("/bin/true", ad=ALICE)
    assert told["status"] == 75
    assert "no hook has asked the policy about this job" in told["err"]


def test_a_restart_of_the_broker_changes_no_decision(pilot: Pilot) -> None:
    job, scratch = start(pilot, "/bin/true", ad=ALICE, seconds=60)
    assert until((scratch / "prepared").exists)
    pilot.kill_broker()
    pilot.start_broker()
    (scratch / "go").touch()
    assert finished(job)["status"] == 0
    assert "by big, up 8, down 24 Mbit/s" in pilot.log()


def test_a_killed_judge_is_replaced(pilot: Pilot) -> None:
    assert run(pilot, ALICE)["status"] == 0
    for level in range(2):  # the judge itself, then its keeper and the judge
        keeper = children(pilot.broker_pid)[0]
        judge = children(keeper)[0]
        for pid in (keeper, judge)[1 - level :]:
            os.kill(pid, signal.SIGKILL)
        if level:
            assert os.waitpid(pilot.broker_pid, 0)[1] != 0, "a broker that cannot decide makes room for the next"
            pilot.control.close()
            pilot.start_broker()
        assert run(pilot, ALICE)["status"] == 0


def test_no_process_of_the_policy_outlives_its_broker(pilot: Pilot) -> None:
    keeper = children(pilot.broker_pid)[0]
    family = [keeper, *children(keeper)]
    assert len(family) == 2
    pilot.kill_broker()
    assert until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in family))
    pilot.start_broker()


def test_the_judge_has_no_privilege_and_cannot_be_traced_from_inside(pilot: Pilot) -> None:
    judge = children(children(pilot.broker_pid)[0])[0]
    status = Path(f"/proc/{judge}/status").read_text()
    assert "CapEff:\t0000000000000000\n" in status
    peek = pilot.popen([sys.executable, "-c", f"open('/proc/{judge}/mem', 'rb')"], stderr=-1)
    assert b"PermissionError" in peek.communicate(timeout=60)[1]


def test_job_that_does_without_a_network(pilot: Pilot) -> None:
    connect = (
        f"import socket; client = socket.create_connection(('{PILOT_V4}', {TRAFFIC_PORT}), 60)\n"
        "client.sendall(b'get 1\\n'); client.recv(1)"
    )
    assert run(pilot, ALICE, sys.executable, "-c", connect)["status"] == 0
    told = run(pilot, ALICE + 'VpnNetwork = "none"', sys.executable, "-c", connect)
    assert "No route to host" in told["err"]
    assert int(told["chirped"]["ChirpNetworkBytesOut"]) < 2000, "the kernel's own greetings of the link"


def test_mistake_ends_the_start_with_file_and_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text("[rule one]\nwhen = TARGET.Owner = 1\n")
    pilot = Pilot(tmp_path, job_policy_file=str(policy))
    with pytest.raises(PolicyError, match=r"policy:2: when = TARGET.Owner = 1 is no ClassAd expression.* write =="):
        policies.make_policy(policies.read_policy(pilot.settings), pilot.settings)


def test_node_without_the_bindings_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy"
    policy.write_text("[rule one]\n")
    pilot = Pilot(tmp_path, job_policy_file=str(policy))
    for name in [name for name in sys.modules if name.startswith("htcondor_vpn.jobnet.policy.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "classad2", None)
    with pytest.raises(ProgramMissing, match=r"pip install 'htcondor-vpn\[condor\]'"):
        policies.make_policy(policies.read_policy(pilot.settings), pilot.settings)


def test_many_jobs_at_once(pilot: Pilot) -> None:
    begin = time.monotonic()
    jobs = [start(pilot, "/bin/true", ad=ALICE)[0] for _ in range(20)]
    assert [finished(job)["status"] for job in jobs] == [0] * 20
    assert time.monotonic() - begin < 90


def children(pid: int) -> list[int]:
    assert until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
