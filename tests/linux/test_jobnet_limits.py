"""Limits and counters against what a job really moved."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jobnet_pilot import HERE, Pilot, finished, until
from resends import payload

from htcondor_vpn.addresses import SHAPER_NAMES
from htcondor_vpn.linux import links
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.testbed.headers import payload_bytes
from htcondor_vpn.testbed.rates import assert_rate

pytestmark = pytest.mark.linux

CLIENT = (sys.executable, str(HERE / "traffic_client.py"))


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path, job_max_mbps="50000") as pilot:
        yield pilot


def transfer(pilot: Pilot, verb: str, size: int, flows: int = 1, ad: str = "") -> float:
    """Moves `size` bytes in a job of its own and returns the rate, Mbit/s."""
    return mbps_of(pilot.run_job(*CLIENT, verb, str(size), "198.18.0.1", str(flows), ad=ad), size)


def mbps_of(told: dict[str, Any], size: int) -> float:
    assert told["status"] == 0, told["err"]
    return size * 8 / float(told["out"].split()[0]) / 1e6


@pytest.mark.alone
@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize(("mbps", "flows"), [(5, 1), (50, 1), (50, 10), (500, 4)])
def test_rate_is_what_was_asked_for(pilot: Pilot, verb: str, mbps: float, flows: int) -> None:
    size = int(mbps * 1e6 / 8 * 2)  # two seconds
    assert_rate(partial(transfer, pilot, verb, size, flows, f"VpnBandwidthMbps = {mbps}"), mbps)


@pytest.mark.parametrize(
    ("ad", "whole"), [("", True), ("VpnBandwidthMbps = 20", False), ("VpnBandwidthMbps = 50000", True)]
)
def test_segments_are_as_large_as_the_kernel_has_them_where_no_low_rate_wants_short_ones(
    pilot: Pilot, ad: str, whole: bool
) -> None:
    with Netlink() as netlink:
        largest = links.largest_segment_bytes(netlink)
    job = pilot.start_job("/bin/sleep", "1000", ad=ad)
    try:
        assert until(pilot.links)

        def gso_max_size() -> int:
            (link,) = json.loads(pilot.output("/usr/sbin/ip", "-d", "-j", "link", "show", *pilot.links()))
            return int(link["gso_max_size"])

        assert until(lambda: gso_max_size() == (largest if whole else 8_704)), gso_max_size()
    finally:
        job.terminate()
        job.communicate(timeout=60)


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("ad", ["", "VpnBandwidthMbps = 80"])
def test_counters_are_the_payload_and_its_headers(pilot: Pilot, verb: str, ad: str) -> None:
    size = 20_000_000
    told = pilot.run_job(*CLIENT, verb, str(size), ad=ad)
    assert told["status"] == 0, told["err"]
    chirped = assert_counted(pilot, told, verb, size)
    assert float(chirped["NetworkInputMb"]) == pytest.approx(int(chirped["ChirpNetworkBytesIn"]) / 1e6)
    assert chirped["NetworkOutgoingExternal"] == chirped["ChirpNetworkBytesOut"]


def assert_counted(pilot: Pilot, told: dict[str, Any], verb: str, size: int) -> dict[str, str]:
    """Asserts that a job is charged with the bytes of its transfer and with what was sent again, and returns all that
    was chirped of it.
    """
    chirped: dict[str, str] = told["chirped"]
    to_job, by_job = pilot.resends.segments(), int(told["out"].split()[1])
    way, other, resent = ("In", "Out", to_job) if verb == "get" else ("Out", "In", by_job)
    assert payload_bytes(chirped, way) == payload(size, resent)
    options = 28 * int(chirped[f"ChirpNetworkPackets{other}"])  # what of which has arrived (RFC 2018)
    assert payload_bytes(chirped, other) < size * 0.001 + (options if resent else 0)
    assert int(chirped["ChirpNetworkResentSegments"]) >= by_job
    return chirped


def test_what_is_sent_again_is_counted_again(pilot: Pilot) -> None:
    size = 5_000_000
    pilot.output("/usr/sbin/nft",
        "add table inet lossy; add chain inet lossy input { type filter hook input priority 0; }; "
        "add rule inet lossy input tcp dport 7000 meta length > 1000 numgen inc mod 10 == 0 drop"
    )
    told = pilot.run_job(*CLIENT, "put", str(size))
    assert told["status"] == 0, told["err"]
    chirped = assert_counted(pilot, told, "put", size)
    assert payload_bytes(chirped, "Out") > 1.05 * size
    assert int(chirped["ChirpNetworkResentSegments"]) > 0


@pytest.mark.alone
def test_defaults_limit_each_direction_by_its_knob(tmp_path: Path) -> None:
    with Pilot(tmp_path, job_up_mbps="20", job_down_mbps="40 Mbit/s") as pilot:
        for verb, mbps in (("put", 20), ("get", 40)):
            size = int(mbps * 1e6 / 8)
            assert_rate(partial(transfer, pilot, verb, size), mbps, 0.06)


@pytest.mark.alone
def test_two_jobs_do_not_share_a_limit(pilot: Pilot) -> None:
    size = int(40e6 / 8)

    def slower_of_two() -> float:
        starters = [pilot.start_job(*CLIENT, "get", str(size), ad="VpnBandwidthMbps = 40") for _ in range(2)]
        return min(mbps_of(finished(starter), size) for starter in starters)

    assert_rate(slower_of_two, 40, 0.1)


def test_update_hook_tells_the_totals_so_far(pilot: Pilot) -> None:
    hook = str(pilot.run_dir / "libexec" / "update-job-info")
    starter = pilot.scratch() / "starter.py"
    source = (HERE / "fake_starter.py").read_text()
    starter.write_text(
        source.replace(
            "    out, err = child.communicate(stdin, timeout=100)\n",
            "    import select\n"
            "    select.select([child.stdout], [], [], 30)\n"
            f"    subprocess.run([{hook!r}], input=b'', check=True, timeout=30)\n"
            "    so_far = dict(told)\n"
            "    out, err = child.communicate(b'go\\n', timeout=100)\n"
            "    told.update({f'SoFar{name}': value for name, value in so_far.items()})\n",
        )
    )
    client = " ".join((*CLIENT, "get 1000000"))
    told = json.loads(
        pilot.popen(
            [sys.executable, str(starter), str(pilot.run_dir / "libexec"), str(pilot.scratch()),
             "/bin/sh", "-c", f"{client}; read x; {client}"],
            stdout=-1,
        ).communicate(timeout=100)[0]
    )  # fmt: skip
    assert payload_bytes(told["chirped"], "In", "SoFar") == payload(1_000_000, pilot.resends.segments())
    assert payload_bytes(told["chirped"], "In") == payload(2_000_000, pilot.resends.segments())


def test_limits_as_tc_shows_them(pilot: Pilot) -> None:
    starter = pilot.start_job("/bin/sleep", "1000", ad="VpnBandwidthMbps = 12.5")
    wanted = "class htb 1:8000 root leaf 8000: prio 0 rate 12500Kbit ceil 12500Kbit"
    for link in SHAPER_NAMES:
        show = partial(pilot.output, "/usr/sbin/tc", "class", "show", "dev", link)
        assert until(lambda: wanted in show()), show()  # noqa: B023  (it is called at once)
    starter.kill()
    starter.communicate()


@pytest.mark.parametrize("address", ["198.18.0.1", "fd68:7463:6f6e::1"])
def test_what_a_job_sends_last_still_arrives(pilot: Pilot, address: str) -> None:
    """The job ends with its connection's buffer full; the limit makes the rest take a while."""
    code = (
        "import socket\n"
        f"connection = socket.create_connection(({address!r}, 7000))\n"
        "connection.sendall(b'put 100000000\\n')\n"
        "connection.setblocking(False)\n"
        "sent = 0\n"
        "try:\n"
        "    while True: sent += connection.send(bytes(1 << 16))\n"
        "except BlockingIOError: print(sent)\n"
    )
    told = pilot.run_job(sys.executable, "-c", code, ad="VpnBandwidthMbps = 5")
    assert told["status"] == 0, told["err"]
    assert int(told["out"]) > 100_000
    assert int(told["chirped"]["ChirpNetworkBytesOut"]) > int(told["out"])
