"""What `htcondor-vpn run` does when parts of it die, and when the tunnel goes: it stays closed, and comes back."""

import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from shell_pilot import ShellPilot, fetch, wait_until
from vpn_faults import HeldFlow

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT

# linux/ptrace.h and linux/wait.h
_PTRACE_ATTACH = 16
_WALL = 0x40000000


@pytest.fixture
def gateway(site, tmp_path):
    with SiteGateway(site.dmz, tmp_path) as gateway:
        yield gateway


@pytest.fixture
def pilot(site, gateway, tmp_path):
    pilot = ShellPilot(site, gateway, tmp_path)
    yield pilot
    pilot.kill()


def test_a_gateway_that_goes_and_comes_back(services, gateway, pilot):
    assert pilot.ask(fetch()) == "1000"
    gateway.stop()
    pilot.wait_for("down")
    assert pilot.state()["latency_ms"] is None
    for address in plan.WORLD["http"]:
        begin = time.monotonic()
        code = f"import socket; socket.create_connection(('{address}', 80), 20)"
        assert "Network is unreachable" in pilot.ask(f'{sys.executable} -c "{code}" 2>&1')
        assert time.monotonic() - begin < 19
    gateway.start()
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def test_a_link_that_falls_silent(site, services, pilot):
    site.link.blackhole()
    try:
        pilot.wait_for("down")
    finally:
        site.link.up()
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


@pytest.mark.parametrize("which", ["engine", "broker"])
def test_a_part_that_is_killed_is_started_again(services, pilot, which):
    for _ in range(3):
        victim = pilot.child(which)
        pidfd = os.pidfd_open(victim)
        os.kill(victim, signal.SIGKILL)
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)
        wait_until(lambda: pilot.ask(fetch()) == "1000")
    pilot.wait_for("up")
    pilot.end()


@pytest.mark.parametrize(
    ("which", "told"),
    [("engine", "the engine's process died and is started again"), ("broker", "the broker died (wait status 9)")],
)
def test_a_part_that_is_killed_while_what_command_left_is_waited_for(site, gateway, start_pilot, tmp_path, which, told):
    """It costs COMMAND neither its exit code nor what is waited for."""
    pilot = start_pilot(site, gateway, tmp_path, "--set", "HTCONDOR_VPN_WAIT_AFTER_COMMAND=1 h")
    left, victim = int(pilot.ask("setsid sleep 1000 & echo $!")), pilot.child(which)
    log = pilot.run_dir / "run.log"
    pilot.tell("exit 7")
    wait_until(lambda: "COMMAND ended" in log.read_text())
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: told in log.read_text())
    os.kill(left, signal.SIGKILL)
    assert pilot.process.wait(60) == 7


def test_parts_outlive_the_signals_that_a_batch_system_sends_to_everyone(pilot):
    parts = {which: pilot.child(which) for which in ("engine", "broker")}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for pid in parts.values():
            os.kill(pid, number)
    pilot.end()
    assert "died" not in (pilot.run_dir / "run.log").read_text()


def test_an_engine_that_is_stopped_is_told_and_comes_back(services, pilot):
    engine = pilot.child("engine")
    os.kill(engine, signal.SIGSTOP)
    pilot.wait_for("down")
    assert "is it stopped?" in pilot.state()["reason"]
    os.kill(engine, signal.SIGCONT)
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def test_an_engine_that_is_stopped_for_good_goes_on_with_its_flows(services, pilot, tmp_path):
    flow, engine = HeldFlow(pilot, tmp_path), pilot.child("engine")
    os.kill(engine, signal.SIGSTOP)
    pilot.wait_for("down")
    pilot.wait_for("up", timeout_seconds=60)
    assert pilot.child("engine") == engine
    assert flow.end() == "before after"
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def test_an_engine_that_is_stuck_for_good_is_replaced(services, pilot):
    """Held by a debugger, so that nothing but its death has an effect."""
    engine = pilot.child("engine")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(_PTRACE_ATTACH, engine, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(engine, _WALL)  # it has stopped
    pilot.wait_for("down")
    _, status = os.waitpid(engine, _WALL)
    assert os.WTERMSIG(status) == signal.SIGKILL
    pilot.wait_for("up", timeout_seconds=60)
    assert pilot.child("engine") != engine
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


@pytest.mark.parametrize("others", [(), ("broker",), ("engine",)])
def test_a_killed_run_leaves_nothing_though_a_part_is_killed_too(site, gateway, tmp_path, others):
    before = set(site.processes())
    pilot = ShellPilot(site, gateway, tmp_path)
    pilot.ask("setsid sleep 1000 & true")
    victims = [pilot.child(which) for which in others]
    for victim in (*victims, pilot.process.pid):
        os.kill(victim, signal.SIGKILL)
    pilot.kill()
    wait_until(lambda: set(site.processes()) <= before)  # of which some may have been ending
    assert sorted(path.name for path in pilot.run_dir.iterdir()) == ["jobs.db", "run.log", "state.json"]


def test_a_broker_that_is_killed_while_it_clears_up_is_replaced(site, gateway, tmp_path):
    before = set(site.processes())
    pilot = ShellPilot(site, gateway, tmp_path)
    pilot.ask("setsid sleep 1000 & true")
    broker = pilot.child("broker")
    os.kill(broker, signal.SIGSTOP)
    pilot.process.stdin.close()
    pilot.wait_for("stopping")
    os.kill(broker, signal.SIGKILL)
    assert pilot.process.wait(60) == 0
    assert set(site.processes()) <= before  # of which some may have been ending


def test_a_run_that_is_killed_while_it_connects_leaves_nothing(site, gateway, tmp_path):
    before = set(site.processes())
    log, temporary = tmp_path / "log", Path(tempfile.mkdtemp())  # a short path, or /tmp would be taken instead
    log.touch()
    argv = gateway.run_argv(["true"], "--gateway", f"{plan.DMZ_INSIDE.v4}:9", "-v")
    process = site.node.start(argv, log=log, env={"TMPDIR": str(temporary)})
    wait_for_log(log, b"is connecting", process)
    process.kill()
    process.wait()
    wait_until(lambda: set(site.processes()) <= before)  # of which some may have been ending
    temporary.rmdir()


def test_a_gateway_with_another_key_gets_nothing(site, services, gateway, start_pilot, tmp_path):
    pins = tmp_path / "own.pin"  # the gateway's own file will have the new key
    shutil.copy(gateway.pin_file, pins)
    pilot = start_pilot(site, gateway, tmp_path, "--pin-file", str(pins))
    gateway.stop()
    pilot.wait_for("down")
    credentials = {path: path.read_bytes() for path in gateway.state_folder.glob("gateway.*")}
    for path in credentials:
        path.unlink()
    start_bytes = len(gateway.log.read_bytes())
    gateway.start()
    wait_until(lambda: "another key" in pilot.state()["reason"])
    assert pilot.state()["state"] == "down"
    assert pilot.ask(fetch()) == "0"
    gateway.stop()
    assert b"pilot=" not in gateway.log.read_bytes()[start_bytes:]
    for path, content in credentials.items():
        path.write_bytes(content)
        path.chmod(0o600)
    gateway.start()
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def test_a_token_that_is_revoked_cuts_its_flows_and_may_come_back(services, gateway, pilot, tmp_path):
    code = (
        "import socket; s = socket.create_connection(('203.0.113.20', 7)); s.send(b'x'); print('flowing', flush=True)\n"
        "try: s.recv(1)\n"
        "except ConnectionResetError: print('reset')\n"
    )
    (tmp_path / "flow.py").write_text(code)
    pilot.process.stdin.write(f"{sys.executable} {tmp_path / 'flow.py'}\n".encode())
    pilot.process.stdin.flush()
    wait_for_log(pilot.log, b"^flowing$", pilot.process)
    token = gateway.token_file.read_text()
    shutil.copytree(gateway.state_folder, tmp_path / "kept", ignore=shutil.ignore_patterns("*.sock"))
    gateway.token("revoke", "pilot")
    wait_for_log(pilot.log, b"^reset$", pilot.process)
    pilot.wait_for("down")
    wait_until(lambda: "refuses our token" in pilot.state()["reason"])  # at first it says that connections were lost
    assert token.strip() not in (pilot.run_dir / "run.log").read_text()
    gateway.stop()
    shutil.copytree(tmp_path / "kept", gateway.state_folder, dirs_exist_ok=True)
    gateway.start()
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def test_a_flow_that_is_being_opened_when_the_engine_dies_is_reset(site, gateway, tmp_path):
    """To an address where nobody answers, and connects are not held. An orderly end would be an empty answer."""
    pilot = ShellPilot(site, gateway, tmp_path, "--set", "HTCONDOR_VPN_HOLD_CONNECTS=off")
    code = (
        "import socket; s = socket.create_connection(('203.0.113.99', 7), 60); print('opened', flush=True)\n"
        "try: print('ended', s.recv(1))\n"
        "except ConnectionResetError: print('reset')\n"
    )
    (tmp_path / "flow.py").write_text(code)
    try:
        engine = pilot.child("engine")
        descriptors = Path(f"/proc/{engine}/fd")
        before = len(list(descriptors.iterdir()))
        pilot.process.stdin.write(f"{sys.executable} {tmp_path / 'flow.py'}\n".encode())
        pilot.process.stdin.flush()
        wait_for_log(pilot.log, b"^opened$", pilot.process)
        wait_until(lambda: len(list(descriptors.iterdir())) > before)
        os.kill(engine, signal.SIGKILL)
        wait_for_log(pilot.log, b"^reset$", pilot.process)
    finally:
        pilot.kill()


def test_a_flow_that_the_engine_drops_by_its_death_is_a_reset(services, pilot, tmp_path):
    """An application must never take half of a file for the whole."""
    code = (
        "import socket\n"
        f"s = socket.create_connection(('http.{plan.ZONE}', {HTTP_PORT}), 60)\n"
        "s.sendall(b'GET /bytes/1000000000 HTTP/1.0\\r\\n\\r\\n')\n"
        "n = len(s.recv(100000))\n"
        "print('flowing', flush=True)\n"
        "try:\n"
        "    while got := len(s.recv(10000)): n += got\n"
        "    print('ended')\n"
        "except ConnectionResetError: print('reset')\n"
    )
    script = tmp_path / "flow.py"
    script.write_text(code)
    engine = pilot.child("engine")
    pilot.process.stdin.write(f"{sys.executable} {script}\n".encode())
    pilot.process.stdin.flush()
    wait_for_log(pilot.log, b"^flowing$", pilot.process)
    os.kill(engine, signal.SIGKILL)
    wait_for_log(pilot.log, b"^reset$", pilot.process)


def test_nothing_leaves_but_to_the_gateway(leaky_site, tmp_path):
    """On a node that could leak by its routing table: TCP, UDP, ICMP and DNS, with the tunnel up and with it lost."""
    from htcondor_vpn.testbed.capture import Capture

    site = leaky_site
    with SiteGateway(site.dmz, tmp_path) as gateway:
        gateway_end = [(plan.DMZ_INSIDE.v4, 8443), (plan.DMZ_INSIDE.v6, 8443)]
        with Capture(site, allowed=gateway_end) as capture:
            pilot = ShellPilot(site, gateway, tmp_path)
            attempt = (
                "curl -s -m 2 http://203.0.113.20:9/; curl -s -m 2 'http://[2001:db8:1::20]:9/'; "
                "ping -c 1 -W 1 203.0.113.20; getent ahosts cm.site.example; "
                "echo x > /dev/udp/203.0.113.53/53; echo x > /dev/udp/203.0.113.20/7; "
                "echo x > /dev/udp/2001:db8:1::20/7"
            )
            pilot.ask(f'bash -c "{attempt}" 2>&1; true')
            gateway.stop()
            pilot.wait_for("down")
            pilot.ask(f'bash -c "{attempt}" 2>&1; true')
            os.kill(pilot.child("engine"), signal.SIGKILL)
            pilot.ask(f'bash -c "{attempt}" 2>&1; true')
            pilot.kill()
        assert [str(packet) for packet in capture.foreign] == []
        assert capture.total > 0


def test_state_is_gone_with_a_temporary_run_folder(site, gateway):
    said = site.node.run(gateway.run_argv(["sh", "-c", "echo $HTCONDOR_VPN_RUN_DIR"])).stdout.strip()
    assert said
    assert not Path(said).exists()
