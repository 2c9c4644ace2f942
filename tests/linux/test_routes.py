"""What the kernel says about addresses in a network namespace with known ones."""

import json
import shutil
import subprocess
import sys
from ipaddress import ip_address

import pytest

from htcondor_vpn.linux.routes import BROADCAST, LOCAL, UNICAST, route_type

pytestmark = pytest.mark.linux

SETUP = """
ip link set lo up
ip link add one type veth peer name two
ip addr add 10.0.0.5/24 dev one
ip addr add 10.0.0.6/24 dev one
ip addr add 2001:db8::5/64 dev one nodad
ip link set one up
ip link set two up
ip route add local 203.0.113.0/24 dev lo src 10.0.0.5
ip route add blackhole 192.0.2.0/26
ip route add prohibit 192.0.2.64/26
ip route add unreachable 192.0.2.128/26
ip -6 route add blackhole 2001:db8:1::/48
ip -6 route add prohibit 2001:db8:2::/48
ip -6 route add unreachable 2001:db8:3::/48
exec "$@"
"""

PROBE = """
import json, sys
from ipaddress import ip_address
from htcondor_vpn.linux.routes import route_type
print(json.dumps({text: route_type(ip_address(text)) for text in sys.argv[1:]}))
"""


def test_local_is_what_this_host_answers_itself():
    expected = {
        "10.0.0.5": LOCAL, "10.0.0.6": LOCAL, "10.0.0.7": UNICAST, "10.0.0.255": BROADCAST, "203.0.113.9": LOCAL,
        "2001:db8::5": LOCAL, "2001:db8::6": UNICAST, "198.51.100.1": None, "2600::1": None,
        "192.0.2.1": None, "192.0.2.65": None, "192.0.2.129": None,
        "2001:db8:1::1": None, "2001:db8:2::1": None, "2001:db8:3::1": None,
    }  # fmt: skip
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1) on this machine")
    argv = [unshare, "-Urn", "sh", "-ec", SETUP, "sh", sys.executable, "-c", PROBE, *expected]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_loopback_here():
    assert route_type(ip_address("127.1.2.3")) == LOCAL
