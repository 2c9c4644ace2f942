"""What a job may reach, what is counted of it and by class, and its flight recorder: a broker and the kernel."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jobnet_pilot import HERE, Pilot, finished, until
from resends import between

from htcondor_vpn.jobnet.counting import addresses, books, ledger, policies, rules, table
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.policies import Reach
from htcondor_vpn.jobnet.counting.recorder import Recorder
from htcondor_vpn.jobnet.policy.decision import Decision

pytest.importorskip("classad2", reason="a policy file needs HTCondor's Python bindings")
pytestmark = pytest.mark.linux

#: The hook has asked for the job, as a starter has it.
PREPARED = ("--prepared", "0")
CLIENT = (sys.executable, str(HERE / "traffic_client.py"))
CAMPUS, WORLD, FORBIDDEN = ((f"203.0.113.{n}", f"2001:db8::{n}") for n in (7, 8, 9))


POLICY = """
[class campus]
destinations = 203.0.113.7, 2001:db8::7

[class off-campus]
destinations = 203.0.113.0/24 tcp port 7000, ::/0

[rule all]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a pilot with hosts behind it; `rule` is what its policy says besides."""
    started: list[Pilot] = []
    peers: list[subprocess.Popen[bytes]] = []

    def begin(rule: str = "", **knobs: str) -> Pilot:
        policy = tmp_path / "policy"
        policy.write_text(POLICY + rule)
        pilot = Pilot(tmp_path, job_policy_file=str(policy), **knobs)
        pilot.__enter__()
        started.append(pilot)
        # As the catcher has it: whoever is refused is told, however often.
        pilot.output("/bin/sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")
        for v4, v6 in (CAMPUS, WORLD, FORBIDDEN):
            for address in (v4, v6):
                pilot.output("/usr/sbin/ip", "address", "add", address, "dev", "lo", *["nodad"] * (":" in address))
            peer = pilot.popen([sys.executable, str(HERE / "traffic_peer.py"), v4, v6, "7000"], stdout=subprocess.PIPE)
            assert peer.stdout is not None
            assert peer.stdout.readline()
            peers.append(peer)
        return pilot

    yield begin
    for pilot in started:
        pilot.__exit__()
    for peer in peers:
        peer.wait(60)
        assert peer.stdout is not None
        peer.stdout.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lose_policy(pilot: Pilot) -> None:
    """Has the broker end by itself, because nobody decides for jobs any more."""
    keeper = children(pilot.broker_pid)[0]
    for pid in (*children(keeper), keeper):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pilot.broker_pid, 0)
    pilot.control.close()
    pilot.broker_pid = 0


def get(size: int, address: str) -> str:
    return " ".join((*CLIENT, "get", str(size), address))


def with_headers(size: int, pilot: Pilot) -> Any:
    """What is counted for so many bytes to jobs: up to 5 % are headers, by how the kernel cut them into packets."""
    return between(size, 1.05 * size, pilot.resends.segments())


def live(pilot: Pilot) -> str:
    file = pilot.run_dir / "jobs.json"
    return file.read_text() if file.exists() else ""


def rows(pilot: Pilot) -> list[dict[str, Any]]:
    return ledger.read(pilot.run_dir / ledger.FILE)


@pytest.mark.parametrize("kernel", ["counts as it looks up", "does not", "has no room for flows"])
def test_each_class_has_its_bytes_and_together_they_are_all(
    start: Any, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    if kernel == "does not":
        monkeypatch.setattr(table, "counts_look_ups", lambda listed: False)
    elif kernel == "has no room for flows":
        monkeypatch.setattr(rules, "MOST_FLOWS", 1)
    pilot = start()
    known = "@sent_flows_4 accept" in pilot.output("/usr/sbin/nft", "list", "table", "inet", rules.TABLE)
    assert known == (kernel != "does not")
    transfers = (get(4_000_000, CAMPUS[0]), get(2_000_000, CAMPUS[1]), get(1_000_000, WORLD[0]))
    told = pilot.run_job(*PREPARED, "/bin/sh", "-c", " && ".join(transfers))
    assert told["status"] == 0, told["err"]
    chirped = {name: float(value) for name, value in told["chirped"].items()}
    assert chirped["ChirpNetworkCampusBytesIn"] == with_headers(6_000_000, pilot)
    assert chirped["ChirpNetworkOffCampusBytesIn"] == with_headers(1_000_000, pilot)
    assert chirped["ChirpNetworkCampusConnections"] == 2
    assert chirped["ChirpNetworkConnections"] == 3
    for way in ("In", "Out"):
        by_class = sum(chirped[f"ChirpNetwork{word}Bytes{way}"] for word in ("Campus", "OffCampus", "Other"))
        assert by_class == pytest.approx(chirped[f"ChirpNetworkBytes{way}"], rel=0.01)
    assert chirped["NetworkIncomingInternal"] == chirped["ChirpNetworkCampusBytesIn"]
    external = chirped["ChirpNetworkBytesIn"] - chirped["ChirpNetworkCampusBytesIn"]
    assert chirped["NetworkIncomingExternal"] == external
    assert chirped["ChirpNetworkPeakMbpsIn"] >= chirped["ChirpNetworkMeanMbpsIn"] > 0
    assert chirped["ChirpNetworkResentSegments"] >= 0


@pytest.mark.parametrize(
    "rule",
    [
        "deny = 203.0.113.9, 2001:db8::9",
        "deny = 203.0.113.0/24 tcp port 7001-8000, 203.0.113.9, 2001:db8::9 tcp port 7000, ::/0 udp",
        "deny = 203.0.113.9, 0.0.0.0/8, 224.0.0.0/3, 2001:db8::8/125, 8000::/1",
        "allow = 203.0.113.7, 203.0.113.8 tcp port 7000, 2001:db8::7",
    ],
)
def test_job_reaches_only_what_it_may(start: Any, rule: str) -> None:
    pilot = start(rule)
    for address in (*CAMPUS, WORLD[0], "198.18.0.1"):
        told = pilot.run_job(*PREPARED, *CLIENT, "get", "1000", address)
        assert told["status"] == 0, (address, told["err"])
    for address, error in zip(FORBIDDEN, ("No route to host", "Permission denied")):
        assert error in pilot.run_job(*PREPARED, *CLIENT, "get", "1000", address)["err"]
    datagrams = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('203.0.113.9', 9))\n"
    datagrams += "s.send(b'x'); s.settimeout(10); s.recv(1)"
    assert "No route to host" in pilot.run_job(*PREPARED, sys.executable, "-c", datagrams)["err"]


def test_flight_recorder_is_in_the_sandbox_of_whoever_asked(start: Any) -> None:
    pilot = start("deny = 203.0.113.9")
    scratch = pilot.scratch("VpnFlightRecorder = true")
    refused = " ".join((*CLIENT, "get", "1000", FORBIDDEN[0]))
    told = pilot.run_job(*PREPARED, "/bin/sh", "-c", f"{get(500_000, CAMPUS[0])}; {refused}", scratch=scratch)
    assert "No route to host" in told["err"]
    flights = json.loads((scratch / "vpn-flight-recorder.json").read_text())
    (campus,) = flights["destinations"]
    assert (campus["address"], campus["port"], campus["protocol"], campus["class_name"]) == (
        CAMPUS[0], 7000, "tcp", "campus",
    )  # fmt: skip
    assert campus["bytes_in"] == with_headers(500_000, pilot)
    (forbidden,) = flights["refused"]
    assert (forbidden["address"], forbidden["reason"]) == (FORBIDDEN[0], "the policy of this slot forbids it")
    assert forbidden["attempts"] >= 1
    other = pilot.scratch()
    pilot.run_job(*PREPARED, "/bin/true", scratch=other)
    assert not (other / "vpn-flight-recorder.json").exists()
    assert until(lambda: len([row for row in rows(pilot) if row["ended"]]) == 2)
    (asked,) = [row for row in rows(pilot) if row["flights"]["refused"]]
    assert asked["flights"]["destinations"][0]["address"] == CAMPUS[0]


@pytest.mark.parametrize("end", [Pilot.kill_broker, lose_policy])
def test_counts_and_names_survive_the_broker(start: Any, end: Callable[[Pilot], None]) -> None:
    pilot = start()
    scratch = pilot.scratch('VpnFlightRecorder = true\nGlobalJobId = "ap#7.0#1"')
    transfer = get(1_000_000, CAMPUS[0])
    script = f"{transfer}; touch first; while [ ! -e go ]; do sleep 0.05; done; {transfer}"
    starter = pilot.start_job(*PREPARED, "/bin/sh", "-c", script, scratch=scratch)
    assert until(lambda: (scratch / "first").exists())
    assert until(lambda: "ap#7.0#1" in live(pilot))
    end(pilot)
    pilot.start_broker()
    (scratch / "go").touch()
    told = finished(starter)
    assert told["status"] == 0, told["err"]
    chirped = told["chirped"]
    assert float(chirped["ChirpNetworkCampusBytesIn"]) == with_headers(2_000_000, pilot)
    assert chirped["ChirpNetworkCampusConnections"] == "2"
    (campus,) = json.loads((scratch / "vpn-flight-recorder.json").read_text())["destinations"]
    assert campus["bytes_in"] == with_headers(2_000_000, pilot)
    assert until(lambda: [row["outcome"] for row in rows(pilot)] == ["ended"])
    assert rows(pilot)[0]["job"] == "ap#7.0#1"


def elements(pilot: Pilot) -> Mapping[str, int]:
    listed = json.loads(pilot.output("/usr/sbin/nft", "-j", "list", "table", "inet", "htcondor_vpn_jobs"))["nftables"]
    return {
        each[kind]["name"]: len(each[kind]["elem"])
        for each in listed
        for kind in ("set", "map")
        if each.get(kind, {}).get("elem")
    }


def test_nothing_is_left_of_a_job_in_the_kernel(start: Any) -> None:
    pilot = start()
    for _ in range(3):
        pilot.run_job(*PREPARED, "/bin/sh", "-c", get(1000, CAMPUS[0]))
    starter = pilot.start_job(*PREPARED, "/bin/sleep", "1000")
    assert until(lambda: "sent_by" in elements(pilot))
    pilot.kill_broker()
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    pilot.start_broker()
    assert until(lambda: not elements(pilot)), elements(pilot)
    assert until(lambda: not pilot.links())


def test_ledger_in_a_folder_is_one_file_a_pilot(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ledgers"
    folder.mkdir()
    pilot = start(job_ledger_dir=str(folder))
    pilot.run_job(*PREPARED, "/bin/true")

    def jobs() -> int:
        files = list(folder.glob("jobs-*.db"))
        if len(files) != 1:
            return 0
        with closing(sqlite3.connect(files[0])) as database:
            return int(database.execute("SELECT count(*) FROM jobs WHERE outcome = 'ended'").fetchone()[0])

    assert until(lambda: jobs() == 1)


def test_books_of_an_earlier_pilot_in_the_run_folder_are_not_ours(start: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    flights = Recorder(()).state()
    stale = {"account": Account(0, job="ap#1.0#1", policy="p0").message(), "flights": flights}
    policies = {Reach.of(Decision()).chain: Reach.of(Decision()).message()}
    live = {"version": 1, "updated": 0, "jobs": [stale], "policies": policies}
    (tmp_path / "run/jobs.json").write_text(json.dumps(live))
    pilot = start()
    assert ledger.read_live(pilot.run_dir / "jobs.json") == []
    assert pilot.run_job(*PREPARED, "/bin/true")["status"] == 0


def test_silent_flows_make_room_in_the_kernel_and_stay_in_the_recorder(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr(books, "_MANY_FLOWS", 10)
    pilot = start()
    scratch = pilot.scratch("VpnFlightRecorder = true")
    campus = "import sys, traffic_client as client; client.move('get', 1_000_000, sys.argv[1])\n"
    scan = (f"import sys; sys.path.insert(0, {str(HERE)!r}); {campus}"
        "import os, socket, time\n"
        "way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(2):\n"
        "    for n in range(50): way.sendto(bytes(100), (f'203.0.113.{100 + n}', 9))\n"
        "    while not os.path.exists('go'): time.sleep(0.05)\n"
        "client.move('get', 1_000_000, sys.argv[2])\n"
    )
    starter = pilot.start_job(*PREPARED, sys.executable, "-c", scan, CAMPUS[0], WORLD[0], scratch=scratch)
    assert until(lambda: live(pilot).count('"203.0.113.') >= 50)
    assert until(lambda: "sent_flows_4" not in elements(pilot))
    (scratch / "go").touch()
    told = finished(starter)
    assert told["status"] == 0, told["err"]
    flights = json.loads((scratch / "vpn-flight-recorder.json").read_text())
    scanned = [each for each in flights["destinations"] if each["port"] == 9]
    assert len(scanned) == 50
    assert {(each["bytes_out"], each["packets_out"]) for each in scanned} == {(2 * (14 + 20 + 8 + 100), 2)}
    for word in ("Campus", "OffCampus"):  # of the former the kernel knows nothing any more
        assert float(told["chirped"][f"ChirpNetwork{word}BytesIn"]) == with_headers(1_000_000, pilot)


def test_a_flow_may_no_longer_go_where_a_name_no_longer_leads(
    start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(policies, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(addresses, "KEPT_SECONDS", 0.0)
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{address} storage.example.org\n" for address in CAMPUS))
    pilot = start("allow = storage.example.org tcp port 7000")
    pilot.output("/usr/bin/mount", "--bind", str(hosts), "/etc/hosts")
    attempts = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import pathlib, time, traffic_client as client\n"
        "client.move('get', 1000, sys.argv[1])\n"
        "pathlib.Path('first').touch()\n"
        "deadline = time.monotonic() + 30\n"
        "while time.monotonic() < deadline:\n"
        "    client.move('get', 1000, sys.argv[1])\n"
        "    time.sleep(0.02)\n"
    )
    scratch = pilot.scratch()
    starter = pilot.start_job(*PREPARED, sys.executable, "-c", attempts, CAMPUS[0], scratch=scratch)
    assert until(lambda: (scratch / "first").exists())
    hosts.write_text("".join(f"{address} storage.example.org\n" for address in WORLD))
    assert "No route to host" in finished(starter)["err"]


def test_a_broker_of_another_version_makes_its_own_rules_and_jobs_go_on(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = rules.LAYOUT
    for module in (rules, table):
        monkeypatch.setattr(module, "LAYOUT", "layout_of_before")
    monkeypatch.setattr(books, "SAMPLE_SECONDS", 0.1)
    pilot = start("deny = 203.0.113.9")
    scratch = pilot.scratch("VpnFlightRecorder = true")
    transfer, refused = get(1_000_000, CAMPUS[0]), " ".join((*CLIENT, "get", "1000", FORBIDDEN[0]))
    script = f"{transfer}; touch first; while [ ! -e go ]; do sleep 0.05; done; {transfer}; {refused}"
    starter = pilot.start_job(*PREPARED, "/bin/sh", "-c", script, scratch=scratch)
    assert until(lambda: (scratch / "first").exists())

    def written() -> bool:
        jobs = json.loads(live(pilot) or "{}").get("jobs", ())
        return any(each["account"]["classes"]["campus"][1] > 1_000_000 for each in jobs)

    assert until(written)
    for module in (rules, table):
        monkeypatch.setattr(module, "LAYOUT", layout)
    pilot.kill_broker()
    pilot.start_broker()
    assert layout in pilot.output("/usr/sbin/nft", "list", "table", "inet", rules.TABLE)
    (scratch / "go").touch()
    told = finished(starter)
    assert "No route to host" in told["err"]
    assert float(told["chirped"]["ChirpNetworkCampusBytesIn"]) == with_headers(2_000_000, pilot)
    assert told["chirped"]["ChirpNetworkCampusConnections"] == "2"
    (campus,) = json.loads((scratch / "vpn-flight-recorder.json").read_text())["destinations"]
    assert campus["bytes_in"] == with_headers(2_000_000, pilot)
