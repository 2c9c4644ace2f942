"""kill -9 of each process of a pilot and of a gateway, one after the other, as /proc shows them.

The processes are not listed here, so that those which are added one day are killed as well.
"""

import os
import select
import signal
from contextlib import contextmanager

import pytest
from shell_pilot import QUICK, fetch, network_of, wait_until

from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.host import NETNS_FOLDER
from htcondor_vpn.testbed.site import DMZ

#: Two workers, however many processors there are.
KNOBS = (*QUICK, "ENGINE_WORKERS=2")


@contextmanager
def killed(pid):
    """Within, the process is being killed; its end has come when this returns."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        yield
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)


@pytest.fixture
def gateway(sealed, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        yield gateway


def whole(pilot, count):
    """The pilot's processes, as soon as there are so many, of which none comes or goes any more, and it carries."""

    def settled():
        parts = pilot.parts()
        return len(parts) >= count and pilot.ask(fetch()) == "1000" and pilot.parts() == parts and parts

    return wait_until(settled)


@pytest.mark.parametrize("rules", ["", '[rule a]\nwhen = TARGET.Owner == "alice"\n'])
def test_each_process_of_a_pilot(sealed, services, gateway, start_pilot, tmp_path, rules):
    knobs = KNOBS
    if rules:  # then there are processes that judge jobs, too
        (tmp_path / "policy").write_text(rules)
        knobs = (*KNOBS, f"JOB_POLICY_FILE={tmp_path / 'policy'}")
    pilot = start_pilot(sealed, gateway, tmp_path, knobs=knobs)
    run, *parts, command = now = whole(pilot, 8 if rules else 6)
    count = len(now)
    for victim in parts:
        if victim in now:  # it may have ended with one before
            with killed(victim):
                pass
        now = whole(pilot, count)
    pilot.wait_for("up")
    assert pilot.command() == command
    assert pilot.process.poll() is None
    pilot.end()


@pytest.mark.parametrize("who", ["run", "COMMAND"])
def test_what_the_pilot_ends_with(sealed, services, gateway, start_pilot, tmp_path, who):
    pilot = start_pilot(sealed, gateway, tmp_path)
    pilot.ask("setsid sleep 1000 & true")
    parts = pilot.parts()
    with killed(parts[0] if who == "run" else parts[-1]):
        pass
    assert pilot.process.wait(60) == -signal.SIGKILL
    wait_until(lambda: not set(parts) & set(sealed.processes()))


def test_every_pair_of_a_pilots_processes(sealed, services, gateway, start_pilot, tmp_path):
    """Both at once: what one of them restores may need the other one."""
    pilot = start_pilot(sealed, gateway, tmp_path, knobs=KNOBS)
    count = len(whole(pilot, 6))
    for first in range(1, count - 1):
        for second in range(first + 1, count - 1):
            parts = whole(pilot, count)
            with killed(parts[first]), killed(parts[second]):
                pass
    whole(pilot, count)
    pilot.end()


def test_each_process_of_a_gateway(sealed, services, start_pilot, tmp_path):
    dmz = (NETNS_FOLDER / DMZ).stat().st_ino

    def parts():
        return sorted(pid for pid in sealed.processes() if network_of(pid) == dmz)

    (tmp_path / "gateway.conf").write_text("HTCONDOR_VPN_GATEWAY_WORKERS = 2\n")
    with SiteGateway(sealed.dmz, tmp_path, "--config", str(tmp_path / "gateway.conf")) as gateway:
        pilot = start_pilot(sealed, gateway, tmp_path)
        count = len(wait_until(lambda: len(now := parts()) >= 4 and now))
        for turn in range(count):
            victim = parts()[turn]
            with killed(victim):
                pass
            if victim == gateway.process.pid:
                wait_until(lambda: not parts())
                gateway.stop()
                gateway.start()
            wait_until(lambda: len(parts()) >= count and pilot.ask(fetch()) == "1000")
        pilot.end()
