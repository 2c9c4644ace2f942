"""A job that talks to more destinations than the kernel's table has room for: what becomes of it, and of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from jobnet_pilot import HERE, Pilot, finished, until
from resends import payload

from htcondor_vpn.jobnet.counting import books, rules, table
from htcondor_vpn.jobnet.counting.table import FRAME_BYTES
from htcondor_vpn.testbed.headers import payload_bytes

pytest.importorskip("classad2", reason="a policy file needs HTCondor's Python bindings")
pytestmark = pytest.mark.linux

#: The hook has asked for the job, as a starter has it.
PREPARED = ("--prepared", "0")
CLIENT = (sys.executable, str(HERE / "traffic_client.py"))
FAR = "198.51.100.7"
FLOODED_NETWORK = "203.0.113.0/24"
POLICY = f"""
[class flooded]
destinations = {FLOODED_NETWORK}

[class far]
destinations = {FAR}

[rule all]
"""

DATAGRAMS = 70_000
DATAGRAM_BYTES = FRAME_BYTES + 20 + 8 + 20

#: Sends a datagram to each port of two addresses, which are more flows than there may be; then rests until there is a
#: file `go`. Prints how many it sent.
FLOOD = f"""
import os, socket, time
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
for port in range(1, {DATAGRAMS} // 2 + 1):
    for address in ("203.0.113.1", "203.0.113.2"):
        try:
            way.sendto(bytes(20), (address, port))
            sent += 1
        except ConnectionRefusedError:
            pass
open("flooded", "w").close()
while not os.path.exists("go"):
    time.sleep(0.05)
print(sent)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Pilot]]:
    """Starts a pilot with a host behind it and a network that takes whatever comes, and says nothing to it."""
    with ExitStack() as stack:

        def begin() -> Pilot:
            policy = tmp_path / "policy"
            policy.write_text(POLICY)
            pilot = stack.enter_context(Pilot(tmp_path, job_policy_file=str(policy)))
            for address in (FLOODED_NETWORK, f"{FAR}/32"):
                pilot.output("/usr/sbin/ip", "route", "add", "local", address, "dev", "lo")
            argv = [sys.executable, str(HERE / "traffic_peer.py"), FAR, "::1", "7000"]
            peer = stack.enter_context(pilot.popen(argv, stdout=subprocess.PIPE))
            stack.callback(peer.kill)
            assert peer.stdout is not None
            assert peer.stdout.readline()
            return pilot

        yield begin


def flows(pilot: Pilot) -> int:
    listed = json.loads(pilot.output("/usr/sbin/nft", "-j", "list", "set", "inet", rules.TABLE, "sent_flows_4"))
    (found,) = (each["set"] for each in listed["nftables"] if "set" in each)
    return len(found.get("elem", ()))


@pytest.mark.parametrize("kernel", ["counts as it looks up", "does not", "has no nft_limit"])
def test_a_job_that_floods_the_table_is_counted_and_takes_no_count_from_another(
    start: Callable[[], Pilot], monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    most = rules.FLOWS_AT_ONCE
    if kernel == "does not":
        monkeypatch.setattr(table, "counts_look_ups", lambda listed: False)
    elif kernel == "has no nft_limit":
        most, made = 5000, table.table_rules
        monkeypatch.setattr(rules, "MOST_FLOWS", most)
        monkeypatch.setattr(table, "table_rules", lambda **has: made(**{**has, "bounded": False}))
        monkeypatch.setattr(books, "SAMPLE_SECONDS", 1000)  # until then the table is full
    pilot = start()
    scratch = pilot.scratch("VpnFlightRecorder = true")
    flood = pilot.start_job(*PREPARED, sys.executable, "-c", FLOOD, scratch=scratch)
    assert until(lambda: (scratch / "flooded").exists()), pilot.log()
    assert flows(pilot) == most if kernel == "has no nft_limit" else most <= flows(pilot) < rules.MOST_FLOWS / 2
    size = 4_000_000
    told = pilot.run_job(*PREPARED, *CLIENT, "get", str(size), FAR, ad="VpnDownMbps = 20")
    assert told["status"] == 0, told["err"]
    assert float(told["out"].split()[0]) >= size * 8 / 20e6 * 0.9
    chirped = told["chirped"]
    assert payload_bytes(chirped, "In") == payload(size, pilot.resends.segments(), 0.02)
    for way in ("In", "Out"):
        all_bytes = float(chirped[f"ChirpNetworkBytes{way}"])
        assert float(chirped[f"ChirpNetworkFarBytes{way}"]) == pytest.approx(all_bytes, rel=0.02)
    assert chirped["ChirpNetworkFarConnections"] == chirped["ChirpNetworkConnections"] == "1"
    (scratch / "go").touch()
    told = finished(flood)
    assert told["status"] == 0, told["err"]
    assert float(told["out"]) == DATAGRAMS
    sent = float(told["chirped"]["ChirpNetworkBytesOut"])
    assert sent == pytest.approx(DATAGRAMS * DATAGRAM_BYTES, rel=0.02)
    assert float(told["chirped"]["ChirpNetworkFloodedBytesOut"]) == pytest.approx(sent, rel=0.01)
    flights = json.loads((scratch / "vpn-flight-recorder.json").read_text())
    listed = sum(each["bytes_out"] for each in flights["destinations"])
    assert listed + flights["others"]["bytes_out"] == pytest.approx(sent, rel=0.01)
