"""A host that floods the gateway in every way, while a pilot from another address works."""

import os
import sys

import pytest

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT

pytestmark = pytest.mark.linux

#: Opens connections that say nothing, half a ClientHello or half a request, and guesses tokens; for ever.
FLOOD = """
import socket, ssl, sys, threading, time
address = sys.argv[1], int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
hoard = []

def connection(tls):
    sock = socket.create_connection(address, 5)
    return context.wrap_socket(sock) if tls else sock

def attack(kind):
    while True:
        try:
            sock = connection(kind in ("slow request", "guess", "no request"))
            if kind == "half hello":
                sock.send(bytes.fromhex("160301020001"))
            elif kind == "slow request":
                sock.send(b"GET / HTTP/1.1\\r\\nX: ")
            elif kind == "guess":
                sock.send(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer " + b"x" * 43 + b"\\r\\n\\r\\n")
                sock.settimeout(20)
                sock.recv(100)
                sock.close()
                continue
            sock.settimeout(0.3)
            try:
                while sock.recv(4096):
                    pass
            except TimeoutError:
                hoard.append(sock)  # it is still there
        except OSError:
            time.sleep(0.01)

for kind in 12 * ("silence", "half hello", "slow request", "no request") + 2 * ("guess",):
    threading.Thread(target=attack, args=(kind,), daemon=True).start()
while len(hoard) < 90:
    time.sleep(0.1)
print("flooding", flush=True)
time.sleep(600)
"""

#: Makes new connections to the world one after the other; each takes a moment only.
WORK = f"""
import http.client
for number in range(40):
    connection = http.client.HTTPConnection("{plan.WORLD['http'].v4}", {HTTP_PORT}, timeout=30)
    connection.request("GET", "/peer")
    assert connection.getresponse().status == 200
    connection.close()
print("worked", flush=True)
"""


def test_a_flood_from_one_address_leaves_the_others_alone(site, services, tmp_path):
    config = tmp_path / "gateway.conf"
    config.write_text(
        "HTCONDOR_VPN_GATEWAY_CONNECTIONS = 300\n"
        "HTCONDOR_VPN_GATEWAY_UNAUTHENTICATED_PER_ADDRESS = 100\n"
        "HTCONDOR_VPN_GATEWAY_WORKERS = 1\n"
    )
    log = tmp_path / "flood.log"
    log.touch()
    with SiteGateway(site.dmz, tmp_path / "gateway", "--config", str(config)) as gateway:
        host, _, port = gateway.endpoints[1].rpartition(":")
        flood = site.node.start([sys.executable, "-c", FLOOD, host.strip("[]"), port], log=log)
        wait_for_log(log, b"^flooding$", flood, timeout_seconds=60)
        done = site.node.run(gateway.run_argv([sys.executable, "-c", WORK]), timeout_seconds=120)
        flooding = flood.poll() is None
        flood.kill()
        flood.wait(20)
        said = gateway.log.read_text()
    assert (done.returncode, done.stdout) == (0, "worked\n"), done.stderr
    assert flooding
    assert "are unauthenticated" in said
    assert said.count("are unauthenticated") <= 3
    assert os.path.getsize(gateway.log) < 1_000_000
