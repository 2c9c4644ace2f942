"""A gateway's key is changed while pilots run."""

import contextlib
import json
import sys

import pytest
from shell_pilot import PATIENT, ShellPilot, fetch, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT
from htcondor_vpn.wire.trust import pin_of

pytestmark = pytest.mark.linux

#: One connection after the other, and one that stays; says how each fared, until a line comes in.
WORK = f"""
import http.client, select, sys
address = "{plan.WORLD['http'].v4}", {HTTP_PORT}

def ask(connection):
    connection.request("GET", "/peer")
    answer = connection.getresponse()
    answer.read()
    return answer.status == 200

staying, counts = http.client.HTTPConnection(*address, timeout=30), {{"done": 0, "failed": 0}}
ask(staying)
print("working", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    try:
        connection = http.client.HTTPConnection(*address, timeout=30)
        counts["done"] += ask(connection)
        connection.close()
    except OSError as error:
        print(error, flush=True)
        counts["failed"] += 1
try:
    counts["stayed"] = ask(staying)
except OSError:
    counts["stayed"] = False
print(counts, flush=True)
"""

#: Prints the certificate of the gateway, in hexadecimal.
LOOK = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)) as sock:
    print(sock.getpeercert(binary_form=True).hex())
"""


def pin_at(site):
    done = site.node.run([sys.executable, "-c", LOOK, str(plan.DMZ_INSIDE.v4), str(PORT)], check=True)
    return pin_of(bytes.fromhex(done.stdout))


def rotate(gateway, step):
    argv = vpn_command("gateway", "--dir", str(gateway.state_folder), "rotate", step)
    return gateway.host.run(argv, check=True).stdout


@contextlib.contextmanager
def working(site, gateway, tmp_path, pins):
    """A pilot with these pins that does WORK, and did without one failure when all is over."""
    log = tmp_path / "pilot.log"
    log.touch()
    argv = gateway.run_argv([sys.executable, "-c", WORK], "--pin-file", str(pins))
    pilot = site.node.start(argv, log=log, stdin=-1)
    wait_for_log(log, b"^working$", pilot, timeout_seconds=60)
    yield
    pilot.communicate(b"enough\n", timeout=60)
    assert pilot.returncode == 0
    counts = json.loads(log.read_text().splitlines()[-1].replace("'", '"').replace("True", "true"))
    assert (counts["failed"], counts["stayed"]) == (0, True), log.read_text()
    assert counts["done"] >= 10


def wait_for_pin(site, pin):
    """Waits until new connections get that key, of either process, each of which looks for itself."""
    seen = 0
    while seen < 8:
        seen = seen + 1 if pin_at(site) == pin else 0


@pytest.fixture
def gateway(site, services, tmp_path):
    config = tmp_path / "gateway.conf"
    config.write_text("HTCONDOR_VPN_GATEWAY_WORKERS = 2\n")
    with SiteGateway(site.dmz, tmp_path / "gateway", "--config", str(config)) as gateway:
        yield gateway


def test_pilots_with_both_pins_do_not_notice(site, gateway, tmp_path):
    old_pins, both_pins = tmp_path / "old.pin", tmp_path / "both.pin"
    old_pins.write_bytes(gateway.pin_file.read_bytes())
    rotate(gateway, "--prepare")
    both_pins.write_bytes(gateway.pin_file.read_bytes())
    following = both_pins.read_text().split()[1]
    with working(site, gateway, tmp_path, both_pins):
        assert following in rotate(gateway, "--activate")
        wait_for_pin(site, following)

    def turned_away():
        late = site.node.run(gateway.run_argv(["true"], "--pin-file", str(old_pins)))
        return late if late.returncode == 76 else None

    late = wait_until(turned_away)  # a process that is held up may not have looked yet
    assert late.stderr.count("\n") == 1
    assert "ship its new gateway.pin" in late.stderr
    assert site.node.run(gateway.run_argv(["true"], "--pin-file", str(both_pins))).returncode == 0
    assert gateway.pin_file.read_text() == f"{following}\n"
    assert "is not used" not in gateway.log.read_text()


def test_running_pilots_learn_of_the_new_key(site, gateway, tmp_path):
    """They began with the old pin alone, and end with the new one alone."""
    pins = tmp_path / "running.pin"
    pins.write_bytes(gateway.pin_file.read_bytes())
    with working(site, gateway, tmp_path, pins):
        rotate(gateway, "--prepare")
        renew(pins, gateway)
        following = pins.read_text().split()[1]
        rotate(gateway, "--activate")
        wait_for_pin(site, following)
        renew(pins, gateway)
        assert pins.read_text().split() == [following]
        wait_for_pin(site, following)  # and in that time the pilot has made new connections


def test_a_running_pilot_without_the_new_pin_is_down_and_says_why(site, gateway, tmp_path):
    """Its next connection finds out, though the one by which it asks how the gateway is goes on with the old key."""
    pins = tmp_path / "old.pin"
    pins.write_bytes(gateway.pin_file.read_bytes())
    pilot = ShellPilot(site, gateway, tmp_path, "--pin-file", str(pins), knobs=PATIENT)
    rotate(gateway, "--prepare")
    wait_for_pin(site, rotate(gateway, "--activate").split()[0])
    assert pilot.state()["state"] == "up"
    pilot.ask(f"{fetch()} || true")
    pilot.wait_for("down")
    assert "has another key" in pilot.state()["reason"]
    renew(pins, gateway)
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    pilot.end()


def renew(pins, gateway):
    new = pins.with_name("new.pin")
    new.write_bytes(gateway.pin_file.read_bytes())
    new.replace(pins)
