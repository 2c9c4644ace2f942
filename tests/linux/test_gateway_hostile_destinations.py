"""What a pilot may try to get at the gateway's own host and links; asked of a real gateway in the DMZ."""

import json
import sys

import pytest

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.services import HTTP_PORT

pytestmark = pytest.mark.linux

#: Asks for each target in each way; prints the statuses.
ASK = """
import json, socket, ssl, sys
host, port, token, targets = sys.argv[1], int(sys.argv[2]), open(sys.argv[3]).read().strip(), json.loads(sys.argv[4])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

def status(first, *lines):
    with context.wrap_socket(socket.create_connection((host, port), 30)) as sock:
        head = [first, *lines, "Proxy-Authorization: Bearer " + token, "Authorization: Bearer " + token, "", ""]
        sock.sendall("\\r\\n".join(head).encode())
        return int(sock.recv(65536).split()[1])

def udp(target):
    name, _, number = target.rpartition(":")
    path = "/.well-known/masque/udp/" + name.strip("[]").replace(":", "%3A") + "/" + number + "/"
    return status(f"GET {path} HTTP/1.1", "Host: gw", "Connection: Upgrade", "Upgrade: connect-udp")

answers = {}
for target in targets:
    answers[target] = [
        status(f"CONNECT {target} HTTP/1.1", f"Host: {target}"), udp(target),
        status(f"GET http://{target}/ HTTP/1.1", f"Host: {target}"),
    ]
print(json.dumps(answers))
"""

FOUR = int(plan.DMZ_INSIDE.v4)


def embedding(four):
    """IPv6 addresses that lead to an IPv4 one: mapped, NAT64, 6to4, Teredo's client and server."""
    quad = f"{four >> 16:x}:{four & 0xFFFF:x}"
    hidden = f"{four >> 16 ^ 0xFFFF:x}:{four & 0xFFFF ^ 0xFFFF:x}"
    return [
        f"[::ffff:{quad}]", f"[64:ff9b::{quad}]", f"[2002:{quad}::1]", f"[2001:0:808:808::{hidden}]",
        f"[2001:0:{quad}::f7f7:f7f7]",
    ]  # fmt: skip


def own():
    """Every way to write the gateway's own host."""
    addresses = [plan.DMZ_INSIDE.v4, plan.DMZ_OUTSIDE.v4, f"[{plan.DMZ_INSIDE.v6}]", f"[{plan.DMZ_OUTSIDE.v6}]"]
    names = ["localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0"]
    loopback = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "[::1]", "[::]", *embedding(0x7F000001), *embedding(FOUR)]
    return [*addresses, *names, *loopback]


def nobodys():
    broadcast = ["255.255.255.255", "224.0.0.1", "239.255.255.250", "[ff02::1]", "240.0.0.1"]
    return [*broadcast, "169.254.169.254", "[fe80::1]", "[fec0::1]", *embedding(0xA9FEA9FE), "192.168.0.1", "[fd00::1]"]


@pytest.mark.parametrize("targets", [own, nobodys])
def test_the_gateways_place_is_not_its_pilots_place(site, services, tmp_path, targets):
    with SiteGateway(site.dmz, tmp_path) as gateway:
        good = f"{plan.WORLD['http'].v4}:{HTTP_PORT}"
        asked = [f"{target}:{port}" for target in targets() for port in (PORT, 22)]
        arguments = [str(plan.DMZ_INSIDE.v4), str(PORT), str(gateway.token_file), json.dumps([good, *asked])]
        done = site.node.run([sys.executable, "-c", ASK, *arguments], timeout_seconds=120)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
    assert answers.pop(good) == [200, 101, 404]
    for target, statuses in answers.items():
        # What is no address to the gateway's name service is 502, as any unknown name.
        assert all(status in (400, 403, 502) for status in statuses), (target, statuses)
        assert 403 in statuses or target.split(":")[0] in ("0x7f.1", "0177.0.0.1"), (target, statuses)
