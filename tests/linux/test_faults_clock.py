"""The clock of the node, or of the gateway, jumps by hours or decades: what waits and what is measured does not notice.

The gateway runs with the C library's wall clock replaced (libfaketime). On the node, where that would break Python's
sleep, the wall clock that Python tells is replaced. All other clocks never jump.
"""

import json
import re
import time
from pathlib import Path

import pytest
from engine_site import Used, by_wireguard
from shell_pilot import fetch, wait_until

from htcondor_vpn.testbed.gateway import SiteGateway, SiteWireguardGateway

HOUR = 3600
JUMPS = (3 * HOUR, -3 * HOUR, 30 * 8760 * HOUR, -20 * 8760 * HOUR, 0)


class Clock:
    """A clock that can be set while programs look at it."""

    def __init__(self, folder):
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self._file = folder / "clock"
        self.jump(0)
        #: For programs of any kind.
        self.env = {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        #: Python that then runs our own program.
        self.program = (
            f"import sys, time; true = time.time\n"
            f"time.time = lambda: true() + float(open({str(self._file)!r}).read())\n"
            "import warnings; warnings.simplefilter('ignore', ResourceWarning)\n"
            "from htcondor_vpn.cli.main import main; sys.exit(main())"
        )

    def jump(self, seconds):
        """Sets it to another distance from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


def carries(pilot):
    """The pilot carries, and has heard of its gateway since it was asked."""
    before = pilot.state()["bytes_in"]
    assert pilot.ask(fetch()) == "1000"
    wait_until(lambda: pilot.state()["bytes_in"] > before)
    assert pilot.state()["state"] == "up"
    return True


def test_the_nodes_clock_jumps(sealed, services, clock, start_pilot, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        pilot = start_pilot(sealed, gateway, tmp_path, program=clock.program)
        for seconds in JUMPS:
            clock.jump(seconds)
            assert carries(pilot)
            assert abs(pilot.state()["updated"] - time.time() - seconds) < HOUR
        assert "is down" not in (pilot.run_dir / "run.log").read_text()
        pilot.end()


def test_the_gateways_clock_jumps(sealed, services, clock, start_pilot, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path, env=clock.env) as gateway:
        pilot = start_pilot(sealed, gateway, tmp_path)
        for seconds in JUMPS:
            clock.jump(seconds)
            assert carries(pilot)
        years = {int(said) for said in re.findall(rb"^(\d{4})-.* INFO flow ", gateway.log.read_bytes(), re.MULTILINE)}
        assert max(years) - min(years) >= 49
        assert "is down" not in (pilot.run_dir / "run.log").read_text()
        pilot.end()


@pytest.mark.parametrize("years", [-25, 2])
def test_a_gateway_by_its_pin_whatever_its_certificate_says_of_its_time(
    sealed, services, clock, start_pilot, tmp_path, years
):
    """It is made for twenty years at the gateway's first start, by a clock that is wrong or on a node whose one is."""
    clock.jump(years * 8760 * HOUR)
    with SiteGateway(sealed.dmz, tmp_path, env=clock.env) as gateway:
        pilot = start_pilot(sealed, gateway, tmp_path)
        assert carries(pilot)
        pilot.end()


def test_a_token_ends_by_the_gateways_clock(sealed, services, clock, start_pilot, tmp_path):
    """And is good again when the clock has been put right."""
    with SiteGateway(sealed.dmz, tmp_path, env=clock.env) as gateway:
        gateway.token("revoke", "pilot")
        gateway.token_file.unlink()
        gateway.token("add", "pilot", "--expires", "1h", "-o", str(gateway.token_file))
        pilot = start_pilot(sealed, gateway, tmp_path)
        clock.jump(2 * HOUR)
        pilot.wait_for("down")
        assert pilot.ask(fetch()) == "0"
        clock.jump(0)
        pilot.wait_for("up")
        wait_until(lambda: pilot.ask(fetch()) == "1000")
        pilot.end()


def test_the_clock_of_a_wireguard_gateway_jumps(site, services, clock, start_pilot, tmp_path):
    """wireguard-go tells by the true one when it has shaken hands: a session is none the older for it, nor over."""
    with SiteWireguardGateway(site.dmz, tmp_path, program=clock.program) as gateway:
        pilot = start_pilot(site, Used(gateway, by_wireguard(gateway.config), "udp"), tmp_path)
        wait_until(lambda: wireguard_status(gateway)["flows"] == 1)
        for seconds in JUMPS:
            clock.jump(seconds)
            counted = wireguard_status(gateway)["bytes_down"]
            assert pilot.ask(fetch(100_000)) == "100000"
            wait_until(lambda counted=counted: wireguard_status(gateway)["bytes_down"] >= counted + 100_000)
        assert (wireguard_status(gateway)["flows"], wireguard_status(gateway)["flows_ended"]) == (1, 0)
        pilot.end()


def wireguard_status(gateway):
    return json.loads(gateway.verb("status", "--json"))
