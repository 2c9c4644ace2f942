"""The engine's workers: who relays which flow, what ends when one of them does, and that nothing of it is left."""

import os
import select
import signal
import sys
from itertools import count

import pytest
from shell_pilot import QUICK, children, fetch, upload, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.services.oddities import ECHO_PORT

WORKERS, FLOWS = 2, 10
HTTP = str(plan.WORLD["http"].v4)

#: Opens flows; after each line on its standard input it says how many there still are.
CLIENT = f"""
import socket, sys
flows = [socket.create_connection(({HTTP!r}, {ECHO_PORT}), 60) for _ in range({FLOWS})]
def lives(flow):
    try:
        flow.settimeout(0)
        flow.recv(1)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        pass
    return False
print("open", flush=True)
for line in sys.stdin:
    print(line.strip(), sum(map(lives, flows)), flush=True)
"""


@pytest.fixture
def gateway(sealed, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        yield gateway


@pytest.fixture
def pilot(sealed, services, gateway, start_pilot, tmp_path):
    pilot = start_pilot(sealed, gateway, tmp_path, knobs=(*QUICK, f"ENGINE_WORKERS={WORKERS}"))
    yield pilot
    pilot.end()


@pytest.fixture
def flows(pilot, tmp_path):
    """Ten of them; asked, it returns how many there still are."""
    asked = count()
    (tmp_path / "client.py").write_text(CLIENT)
    pilot.tell(f"mkfifo {tmp_path}/told; exec 9<>{tmp_path}/told; {sys.executable} {tmp_path}/client.py <&9 &")
    pilot.wait_for_output(b"^open$")

    def left():
        number = next(asked)
        pilot.tell(f"echo flows{number} >&9")
        return int(pilot.wait_for_output(rf"^flows{number} (\d+)$".encode())[1])

    return left


def workers(pilot):
    return children(pilot.child("engine"))


def connections(process):
    """How many TCP connections a process has."""
    links = []
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            links.append(os.readlink(f"/proc/{process}/fd/{name}"))
        except FileNotFoundError:
            continue  # the listing's own, or just closed
    return sum(link.startswith("socket:") for link in links)


def kill(process):
    pidfd = os.pidfd_open(process)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


def test_flows_are_spread_evenly_and_counted(pilot, flows):
    assert len(workers(pilot)) == WORKERS
    held = [connections(process) for process in workers(pilot)]
    assert sum(held) >= 2 * FLOWS
    assert min(held) >= FLOWS  # two connections for each of five flows
    before = pilot.state()
    assert pilot.ask(fetch(3_000_000)) == "3000000"
    assert pilot.ask(upload(2_000_000)) == "2000000"
    wait_until(lambda: pilot.state()["bytes_in"] >= before["bytes_in"] + 3_000_000)
    wait_until(lambda: pilot.state()["bytes_out"] >= before["bytes_out"] + 2_000_000)
    assert pilot.state()["bytes_in"] < before["bytes_in"] + 3_100_000
    wait_until(lambda: pilot.state()["flows"] == FLOWS)
    assert flows() == FLOWS


def test_a_worker_that_is_killed_takes_its_own_flows_alone(pilot, flows):
    engine, (victim, other) = pilot.child("engine"), workers(pilot)
    wait_until(lambda: pilot.state()["flows"] == FLOWS)
    assert pilot.ask(fetch(1_000_000)) == "1000000"
    descriptors = len(os.listdir(f"/proc/{engine}/fd"))
    carried = wait_until(lambda: (said := pilot.state()["bytes_in"]) >= 1_000_000 and said)
    kill(victim)
    wait_until(lambda: flows() == FLOWS // 2)
    assert pilot.ask(fetch()) == "1000"
    wait_until(lambda: pilot.state()["flows"] == FLOWS // 2)
    assert pilot.state()["bytes_in"] >= carried  # what it had carried still counts
    wait_until(lambda: len(workers(pilot)) == WORKERS)
    assert other in workers(pilot)
    for _ in range(4):
        assert pilot.ask(fetch()) == "1000"
    wait_until(lambda: len(os.listdir(f"/proc/{engine}/fd")) < descriptors + FLOWS // 2)
    assert flows() == FLOWS // 2


def test_a_worker_that_is_stopped_is_replaced(pilot, flows):
    """What was begun in it is reset and does not hang, and what begins meanwhile goes through the other one."""
    engine, (victim, other) = pilot.child("engine"), workers(pilot)
    wait_until(lambda: pilot.state()["flows"] == FLOWS)
    assert pilot.ask(fetch(1_000_000)) == "1000000"
    descriptors = len(os.listdir(f"/proc/{engine}/fd"))
    carried = wait_until(lambda: (said := pilot.state()["bytes_in"]) >= 1_000_000 and said)
    os.kill(victim, signal.SIGSTOP)
    for _ in range(2 * FLOWS):
        assert pilot.ask(fetch()) == "1000"
    wait_until(lambda: victim not in workers(pilot))
    wait_until(lambda: flows() == FLOWS // 2)
    wait_until(lambda: len(workers(pilot)) == WORKERS)
    assert other in workers(pilot)
    wait_until(lambda: pilot.state()["flows"] == FLOWS // 2)
    assert pilot.state()["bytes_in"] >= carried + 2 * FLOWS * 1000
    wait_until(lambda: len(os.listdir(f"/proc/{engine}/fd")) < descriptors + FLOWS // 2)
    assert pilot.ask(fetch()) == "1000"


def test_with_all_workers_stopped_the_engine_relays(pilot, flows):
    former = workers(pilot)
    for process in former:
        os.kill(process, signal.SIGSTOP)
    for _ in range(4):
        assert pilot.ask(fetch()) == "1000"
    wait_until(lambda: flows() == 0)
    wait_until(lambda: len(set(workers(pilot)) - set(former)) == WORKERS)
    assert pilot.ask(fetch()) == "1000"


def test_workers_end_with_their_engine(pilot, flows):
    former, since = workers(pilot), pilot.state()["since"]
    kill(pilot.child("engine"))
    wait_until(lambda: flows() == 0)
    wait_until(lambda: not any(os.path.exists(f"/proc/{process}") for process in former))
    wait_until(lambda: (state := pilot.state())["state"] == "up" and state["since"] > since)
    assert pilot.ask(fetch()) == "1000"


def test_one_worker_is_the_engine_itself(sealed, services, gateway, start_pilot, tmp_path):
    pilot = start_pilot(sealed, gateway, tmp_path, knobs=(*QUICK, "ENGINE_WORKERS=1"))
    assert pilot.ask(fetch()) == "1000"
    assert workers(pilot) == []
    pilot.end()
