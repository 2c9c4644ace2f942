"""The advertiser: what it prints, when, and that nothing else ever gets out."""

from __future__ import annotations

import ast
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.publish import advertiser
from htcondor_vpn.publish.advertiser.ads import Advertiser, SlotAdvertiser, advertisement, slot_advertisement
from htcondor_vpn.publish.advertiser.attributes import ATTRIBUTES
from htcondor_vpn.publish.advertiser.jobs_file import Jobs, parse_jobs
from htcondor_vpn.publish.advertiser.state_file import Observer, is_alive, parse_state

PACKAGE = Path(advertiser.__file__).parent

NAMES = [attribute.name for attribute in ATTRIBUTES]
LINE = re.compile(r'Vpn[A-Za-z]+ = (undefined|-?[0-9]+(\.[0-9]+)?|"[A-Za-z0-9:.\[\]_-]+")')


def state(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1, "pid": os.getpid(), "state": "up", "since": 1700000000.5, "engine": "stream",
        "gateway": "gw.example.org:8443", "latency_ms": 1.25, "up_mbps": 940, "down_mbps": 941.5, "bytes_in": 2**62,
        "bytes_out": 5, "flows": 0, "families": ["ipv4"], "reason": "", "updated": time.time(), **changes,
    }  # fmt: skip


def put(folder: Path, document: object) -> None:
    fresh = folder / "fresh"
    fresh.write_text(json.dumps(document))
    fresh.replace(folder / "state.json")


def attributes(text: str) -> dict[str, str]:
    return dict(line.split(" = ") for line in text.splitlines() if " = " in line)


def test_the_table() -> None:
    assert len(set(NAMES)) == len(NAMES) == 9
    for attribute in ATTRIBUTES:
        assert attribute.type in ("string", "integer", "real")
        assert bool(attribute.unit) == (attribute.type != "string")
        assert attribute.text.endswith(".")


def test_a_tunnel_that_is_up(tmp_path: Path) -> None:
    put(tmp_path, state())
    assert attributes(advertisement(Observer(str(tmp_path)).fields(time.time()))) == {
        "VpnState": '"up"', "VpnEngine": '"stream"', "VpnGateway": '"gw.example.org:8443"', "VpnUpMbps": "940.000",
        "VpnDownMbps": "941.500", "VpnLatencyMs": "1.250", "VpnBytesIn": str(2**62), "VpnBytesOut": "5",
        "VpnSince": "1700000000",
    }  # fmt: skip


def test_a_tunnel_that_is_not_up_has_no_bandwidth(tmp_path: Path) -> None:
    put(tmp_path, state(state="down"))
    told = attributes(advertisement(Observer(str(tmp_path)).fields(time.time())))
    assert {name for name, value in told.items() if value == "undefined"} == {
        "VpnUpMbps",
        "VpnDownMbps",
        "VpnLatencyMs",
    }
    assert told["VpnState"] == '"down"'


def test_a_state_nobody_vouches_for_has_no_numbers(tmp_path: Path) -> None:
    def word(now: float | None = None) -> str:
        told = attributes(advertisement(Observer(str(tmp_path)).fields(time.time() if now is None else now)))
        assert list(told) == NAMES
        assert set(list(told.values())[1:]) == {"undefined"}
        return told["VpnState"]

    assert word() == '"stopped"'
    (tmp_path / "state.json").mkdir()
    assert word() == '"unknown"'
    (tmp_path / "state.json").rmdir()
    put(tmp_path, state(pid=2**22 + 1))
    assert word() == '"stopped"'
    put(tmp_path, state())
    assert word(time.time() + 31) == '"unknown"'
    assert word(time.time() - 31) == '"unknown"'
    (tmp_path / "state.json").write_text(json.dumps(state())[:-1])
    assert word() == '"unknown"'
    (tmp_path / "state.json").write_text(" " * 70000)
    assert word() == '"unknown"'


def test_the_same_observer_sees_each_change(tmp_path: Path) -> None:
    observer = Observer(str(tmp_path))
    words = []
    for change in ({"state": "up"}, {"state": "down"}, {"state": "wrong"}, {"state": "down"}, {"pid": 2**22 + 1}, {}):
        put(tmp_path, state(**change))
        words.append(observer.fields(time.time())["state"])
    assert words == ["up", "down", "unknown", "down", "stopped", "up"]


def test_a_zombie_is_dead() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child)
    os.waitpid(child, 0)
    assert is_alive(os.getpid())


GATEWAY = {"name": "gw:1", "up": True, "load": 0.5, "draining": False, "reason": ""}
ROUTE = {"to": "10.8.0.0/16", "by": "direct", "up": True, "flows": 1, "reason": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"version": None}, {"pid": 0}, {"pid": "1"}, {"pid": True}, {"state": "UP"}, {"state": None},
        {"state": ["up"]}, {"since": -1}, {"since": "x"}, {"since": float("inf")},
        {"engine": 'a"b'}, {"engine": "a\nb"},
        {"engine": 5},
        {"gateway": 'x" VpnState = "up:1'}, {"gateway": "a\\:1"}, {"gateway": "gw"}, {"gateway": "gw:1\n"},
        {"latency_ms": -1}, {"latency_ms": float("nan")}, {"latency_ms": True}, {"up_mbps": 1e10}, {"down_mbps": "1"},
        {"bytes_in": 1.5}, {"bytes_in": 2**63}, {"bytes_out": -1}, {"bytes_out": None}, {"flows": None}, {"jobs": -1},
        {"reason": 5}, {"families": None}, {"families": ["ipx"]}, {"families": [[]]}, {"updated": None},
        {"gateways": [{**GATEWAY, "load": 2}]}, {"gateways": [{**GATEWAY, "name": None}]},
        {"routes": [5]}, {"routes": [{}]}, {"routes": [{**ROUTE, "flows": -1}]}, {"routes": [{**ROUTE, "up": 1}]},
    ],
)  # fmt: skip
def test_damaged_fields(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="."):
        parse_state(json.dumps(state(**change)))


def test_more_fields_than_known_are_no_harm() -> None:
    assert "future" not in parse_state(json.dumps(state(future=1)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.dictionaries(st.sampled_from(sorted(state())), json_values).map(
            lambda some: json.dumps(state(**some)).encode()
        ),
        st.just(b"[" * 50000),
    )
)
def test_whatever_the_file_holds_only_literals_get_out(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "state.json").write_bytes(data)
    lines = advertisement(Observer(str(folder)).fields(time.time())).splitlines()
    assert [line.split(" = ")[0] for line in lines] == NAMES
    assert all(LINE.fullmatch(line) for line in lines), lines


def test_a_change_is_told_at_once_and_numbers_now_and_then() -> None:
    told = Advertiser()
    now = 1000.0
    assert told.due(state(), now).endswith("- update:true\n")
    assert told.due(state(), now + 100) == ""
    assert told.due(state(bytes_in=1, latency_ms=3), now + 1) == ""
    latest = state(bytes_in=2, latency_ms=3)
    assert told.due(latest, now + 2) == ""
    assert told.due(latest, now + 3) == ""
    refreshed = told.due(latest, now + 11)
    assert told.due(latest, now + 22) == ""
    assert "VpnBytesIn = 2\n" in refreshed
    assert refreshed.endswith("\n-\n")
    for change in ({"state": "down"}, {"gateway": "other:1"}, {"since": 5}, {"latency_ms": None}):
        assert told.due(state(**change), now + 11).endswith("- update:true\n"), change


def test_it_stands_alone() -> None:
    for module in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            others = [name for name in names if not name.startswith(f"{advertiser.__name__}.")]
            assert not [name for name in others if name.split(".")[0] == "htcondor_vpn"]


def test_no_two_modules_have_the_same_name_of_their_own() -> None:
    own = [
        target
        for module in PACKAGE.glob("*.py")
        for node in ast.parse(module.read_text()).body
        for target in _names_of(node)
    ]
    assert own
    assert len(own) == len(set(own))


def _names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [each.id for each in node.targets if isinstance(each, ast.Name)] if isinstance(node, ast.Assign) else []


class Running:
    """The advertiser as a startd runs it: by its path in the run folder's libexec, with a pipe for its output."""

    def __init__(self, run_dir: Path) -> None:
        write_programs(run_dir / "libexec", {"advertise": PACKAGE}, 0o700)
        program = run_dir / "libexec" / "advertise"
        self.process = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", env={})
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def block(self, timeout_seconds: float = 60) -> str:
        """Returns the lines up to the next one that begins with `-`."""
        deadline, text = time.monotonic() + timeout_seconds, b""
        while not re.search(rb"^-.*\n", text, re.MULTILINE):
            ready, _, _ = select.select([self.output], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing was printed within {timeout_seconds} s after {text!r}"
            text += os.read(self.output.fileno(), 65536)
        return text.decode()


def test_one_advertisement_for_who_asks_once(tmp_path: Path) -> None:
    put(tmp_path, state())
    write_programs(tmp_path / "libexec", {"advertise": PACKAGE}, 0o700)
    program = tmp_path / "libexec/advertise"
    argv = [sys.executable, "-IS", program, "--once"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
    assert said == advertisement(Observer(str(tmp_path)).fields(time.time()))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    put(tmp_path, state())
    advertise = Running(tmp_path)
    yield advertise
    advertise.process.kill()
    advertise.process.wait()
    advertise.output.close()


def test_a_change_gets_out_within_a_second(tmp_path: Path, running: Running) -> None:
    assert 'VpnState = "up"' in running.block()
    taken = []
    for word in ("down", "up", "down", "up"):
        put(tmp_path, state(state=word))
        start = time.monotonic()
        assert f'VpnState = "{word}"' in running.block()
        taken.append(time.monotonic() - start)
    assert sorted(taken)[-2] < 2, taken  # a machine may be held up once
    (tmp_path / "state.json").unlink()
    assert 'VpnState = "stopped"' in running.block()


def test_it_ends_when_nobody_reads(running: Running) -> None:
    running.block()
    running.output.close()
    assert running.process.wait(60) == 0


@pytest.mark.alone
def test_it_hardly_costs_anything(running: Running) -> None:
    running.block()

    def used_seconds() -> float:
        fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used_seconds()
    running.process.send_signal(0)
    select.select([running.output], [], [], 4)
    assert used_seconds() - before <= 0.02  # two ticks of the clock in 4 s is what can be told from nothing


def account(slot: Any = "slot1_2", received: Any = 5, **more: Any) -> dict[str, Any]:
    made = {
        "slot": slot, "ended": None, "totals": [received, 6, 1, 1], "classes": {"other": [0, 0, 0, 0, 3]},
        "peak_in_mbps": 1.5, "peak_out_mbps": 2.25,
    }  # fmt: skip
    return {"account": {**made, **more}}


def jobs(*accounts: Any) -> bytes:
    return json.dumps({"version": 1, "jobs": accounts}).encode()


def test_a_slots_job_is_told_to_that_slot_alone() -> None:
    text = slot_advertisement("slot1_2", parse_jobs(jobs(account()))["slot1_2"])
    assert text.splitlines() == [
        "VpnJobBytesIn = 5",
        "VpnJobBytesOut = 6",
        "VpnJobConnections = 3",
        "VpnJobPeakMbpsIn = 1.500",
        "VpnJobPeakMbpsOut = 2.250",
        'SlotName = "slot1_2@"',
        "- slot1_2",
    ]


@pytest.mark.parametrize("slot", ["slot1", "slot1_2", 'slot1" || true', "", 7, None, "slot1_2\nStart = true"])
def test_a_slot_has_a_slots_name(slot: Any) -> None:
    assert set(parse_jobs(jobs(account(slot)))) == ({slot} if slot in ("slot1", "slot1_2") else set())


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"jobs": 5}', b'{"jobs": [{}]}', b"[" * 100000, jobs(account(received="1")),
     jobs(account(received=-1)), jobs(account(peak_in_mbps="x")), jobs(account(classes=[]))],
)  # fmt: skip
def test_nonsense_tells_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "jobs.json").write_bytes(data)
    assert Jobs(str(tmp_path)).by_slot() == {}


def test_jobs_are_told_when_they_change_and_when_they_end() -> None:
    slots, one, two = SlotAdvertiser(), {"slot1_1": {"bytes_in": 1}}, {"slot1_1": {"bytes_in": 2}}
    assert "VpnJobBytesIn = 1\n" in slots.due(one, 0.0)
    assert slots.due(two, 1.0) == ""
    assert "VpnJobBytesIn = 2\n" in slots.due(two, 20.0)
    assert slots.due(two, 40.0) == ""
    assert "VpnJobBytesIn = undefined\n" in slots.due({}, 60.0)
    assert slots.due({}, 80.0) == ""
