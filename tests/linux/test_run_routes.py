"""What HTCONDOR_VPN_ROUTES leads past the tunnel, elsewhere or nowhere, and that nothing else leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import storage_site
from engine_site import sets, trusting
from shell_pilot import PATIENT, wait_until
from storage_site import Storage

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.proxies import Dante

HERE = Path(__file__).parent
DIRECT = "10.8.0.0/16 direct, fd10:8::/32 direct"
OTHER_PORT = 8444
NODE_V4 = str(plan.NODE.v4)


@pytest.fixture(scope="module")
def other(site, gateway, tmp_path_factory):
    """A second gateway, which knows the same token and has the same key."""
    folder = tmp_path_factory.mktemp("other") / "gateway"
    subprocess.run(["cp", "-a", str(gateway.folder), str(folder)], check=True, timeout=30)
    other = SiteGateway(site.dmz, folder)
    other.endpoints = (f"{plan.DMZ_INSIDE.v4}:{OTHER_PORT}",)
    with other:
        yield other


@pytest.fixture(scope="module")
def storage(site, tmp_path_factory):
    with Storage(site, tmp_path_factory.mktemp("storage")) as storage:
        yield storage


@pytest.fixture(scope="module")
def dante(site, tmp_path_factory):
    with Dante(site.dmz, tmp_path_factory.mktemp("dante")) as dante:
        yield dante


class Routed:
    """A pilot of the gateway with these routes."""

    def __init__(self, gateway, routes, **knobs):
        self.knobs = {**trusting(gateway), "ROUTES": routes, **knobs}

    def run_argv(self, command, *options):
        return vpn_command("run", *sets(self.knobs), *options, "--", *command)


@pytest.fixture
def pilot(site, gateway, start_pilot, tmp_path):
    """Starts a pilot with these routes."""
    return lambda routes, **knobs: start_pilot(site, Routed(gateway, routes, **knobs), tmp_path, knobs=PATIENT)


def get(address, path="/peer"):
    return f"curl -s -m 20 http://{address}{path}"


def stored(family, path="/peer"):
    host = {4: storage_site.V4, 6: f"[{storage_site.V6}]"}[family]
    return get(f"{host}:{storage_site.HTTP}", path)


def until_it_works(command):
    return f"for i in 1 2 3 4 5 6 7 8 9 10; do {command} && break; sleep 1; done"


def udp(*addresses):
    asked = " ".join(f"{address},{storage_site.ECHO},{size},1" for address in addresses for size in (1, 1400, 30000))
    return f"{sys.executable} {HERE}/udp_client.py {asked}"


def python(code):
    return f'{sys.executable} -c "{code}" 2>&1'


#: What a connect sees; without an NFQUEUE in the kernel it would be a reset.
_CONNECT = "import socket; print(socket.create_connection(('{}', {}), 20).recv(9))"
_PROHIBITED, _UNREACHABLE = "No route to host", "Network is unreachable"


def flows(gateway):
    return gateway.log.read_text().count(" flow pilot=")


def test_only_what_is_listed_leaves_beside_the_tunnel(site, services, gateway, storage, pilot):
    allowed = [(plan.DMZ_INSIDE.v4, 8443), (storage_site.V4, None), (storage_site.V6, None)]
    with Capture(site, allowed) as capture:
        running = pilot(DIRECT)
        before = flows(gateway)
        assert running.ask(stored(4)) == NODE_V4
        assert running.ask(stored(6)) == str(plan.NODE.v6)
        assert running.ask(udp(storage_site.V4, storage_site.V6)).split() == 6 * ["ok"]
        for address in (storage_site.V4, storage_site.V6):
            assert " 0% packet loss" in running.ask(f"ping -c 1 -W 20 {address}")
        assert flows(gateway) == before
        assert running.ask("curl -4 -s -m 20 http://http.site.example/peer") == str(plan.DMZ_OUTSIDE.v4)
        assert "10.1.0.1" not in running.ask(get("10.1.0.1:8080") + "; echo")
        told = {(route["to"], route["by"]): route for route in running.state()["routes"]}
        assert set(told) == {("10.8.0.0/16", "direct"), ("fd10:8::/32", "direct")}
        running.end()
    assert [str(packet) for packet in capture.foreign] == []
    assert flows(gateway) > before


def test_status_tells_of_the_routes(services, storage, pilot):
    running = pilot(f"{DIRECT}, 203.0.113.20 port 1-9 reject")
    running.ask(stored(4))
    said = running.ask(
        f"{sys.executable} -m htcondor_vpn.cli.main status; {sys.executable} -m htcondor_vpn.cli.main status --json"
    )
    text, start, document = said.partition("[")
    assert "route    203.0.113.20/32 port 1-9 reject, 0 flows" in text
    assert "route    10.8.0.0/16 direct, " in text
    (report,) = json.loads(start + document)
    assert {"to": "fd10:8::/32", "by": "direct", "up": True, "flows": 0, "reason": ""} in report["routes"]


def test_direct_routes_work_while_the_tunnel_is_down(site, services, storage, gateway, pilot):
    running = pilot(DIRECT)
    gateway.stop()
    try:
        running.wait_for("down")
        assert running.ask(stored(4)) == NODE_V4
        assert running.ask(udp(storage_site.V6)).split() == 3 * ["ok"]
        assert running.state()["state"] == "down"
        assert running.ask(python(_CONNECT.format("203.0.113.20", 80))).endswith(_UNREACHABLE)
    finally:
        gateway.start()
    running.wait_for("up")
    running.end()


def test_what_is_rejected_is_refused_at_once(services, pilot):
    running = pilot("203.0.113.0/24 reject, 203.0.113.20 port 80 tunnel")
    assert running.ask(python(_CONNECT.format("203.0.113.30", 5201))).endswith(_PROHIBITED)
    code = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); "
        "s.connect(('203.0.113.20', 7)); s.send(b'x'); s.recv(9)"
    )
    assert "No route to host" in running.ask(python(code))
    assert running.ask(get("203.0.113.20")) == str(plan.DMZ_OUTSIDE.v4)
    running.end()


def test_another_gateway_carries_what_is_led_to_it(services, gateway, other, pilot):
    running = pilot(f"203.0.113.20 gateway {other.endpoints[0]}")
    begin = flows(gateway), flows(other)
    for _ in range(3):
        assert running.ask(get("203.0.113.20")) == str(plan.DMZ_OUTSIDE.v4)
    wait_until(lambda: flows(other) >= begin[1] + 3)
    assert (flows(gateway), flows(other)) == (begin[0], begin[1] + 3)
    other.stop()
    try:
        assert running.ask(python(_CONNECT.format("203.0.113.20", 80))).endswith(_UNREACHABLE)
        assert running.state()["state"] == "up"
    finally:
        other.start()
    assert running.ask(until_it_works(get("203.0.113.20"))) == str(plan.DMZ_OUTSIDE.v4)
    running.end()


def test_another_engine_carries_what_is_led_to_it(services, gateway, dante, pilot):
    running = pilot("203.0.113.20 engine socks5", SOCKS5_SERVERS=dante.endpoint, NAME_SERVERS=plan.WORLD["dns"].v4)
    before = flows(gateway)
    assert running.ask(until_it_works(get("203.0.113.20"))) == str(plan.DMZ_OUTSIDE.v4)
    assert flows(gateway) == before
    (route,) = wait_until(lambda: [each for each in running.state()["routes"] if each["up"]])
    assert route["by"] == "engine socks5"
    running.end()


def test_nobody_reaches_the_node_itself_by_a_direct_route(site, pilot):
    listener = subprocess.Popen(
        site.node.argv([sys.executable, "-c", _LISTEN]), stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert listener.stdout.readline() == b"ready\n"
        running = pilot("10.0.0.0/8 direct, fd10::/16 direct")
        for address in (plan.NODE.v4, plan.NODE.v6):
            said = running.ask(python(_CONNECT.format(address, 4444)))
            assert said.endswith(_PROHIBITED if address.version == 4 else "Permission denied")
            assert "secret" not in said
        assert "it is the node's own" in (running.run_dir / "run.log").read_text()
        running.end()
    finally:
        listener.kill()
        listener.wait()
        listener.stdin.close()
        listener.stdout.close()


_LISTEN = """
import socket
sock = socket.create_server(("::", 4444), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    sock.accept()[0].sendall(b"secret")
"""


def test_names_of_the_site_are_asked_of_the_site(site, services, storage, pilot):
    allowed = [(plan.DMZ_INSIDE.v4, 8443), (storage_site.V4, None)]
    before = len(services.dns_ledger.entries())
    with Capture(site, allowed) as capture:
        running = pilot(
            DIRECT, DIRECT_DOMAINS="cm.Site.example.", DIRECT_NAME_SERVERS=f"{storage_site.V4}:{storage_site.DNS}"
        )
        assert str(plan.WORLD["cm"].v4) in running.ask("getent ahosts cm.site.example")
        assert str(plan.WORLD["http"].v4) in running.ask("getent ahosts http.site.example")
        running.end()
    assert [str(packet) for packet in capture.foreign] == []
    assert {entry["name"] for entry in storage.dns.entries()} == {"cm.site.example."}
    assert "cm.site.example." not in {entry["name"] for entry in services.dns_ledger.entries()[before:]}


def test_a_family_that_only_routes_carry(site, services, gateway, dante, storage, pilot, tmp_path):
    """A tunnel with IPv4 alone, and a direct IPv6 network, from the pilot and from a job's own network."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / ".job.ad").write_text('MyType = "Job"\nRequestCpus = 1\n')
    job = f"{sys.executable} {HERE}/fake_starter.py $HTCONDOR_VPN_RUN_DIR/libexec {scratch}"
    attempt = f"{stored(6)}; echo; curl -s -m 20 -g http://[2001:db8:1::20]/peer; echo $?"
    running = pilot(DIRECT, ENGINE="socks5", SOCKS5_SERVERS=dante.endpoint, NAME_SERVERS=plan.WORLD["dns"].v4)
    assert running.state()["families"] == ["ipv4"]
    assert running.ask(attempt).split() == [str(plan.NODE.v6), "7"]
    told = json.loads(running.ask(f"{job} sh -c '{attempt}'"))
    assert told["out"].split() == [str(plan.NODE.v6), "7"], told
    assert running.ask(udp(storage_site.V6)).split() == 3 * ["ok"]  # which that engine does not carry
    running.end()


def test_a_route_to_an_engine_that_is_not_configured(site, gateway, tmp_path):
    argv = Routed(gateway, "203.0.113.0/24 engine ssh").run_argv(["touch", str(tmp_path / "ran")])
    done = site.node.run(argv, timeout_seconds=60)
    assert done.returncode == 78
    assert "HTCONDOR_VPN_ROUTES leads 203.0.113.0/24 to the engine ssh: no login node is configured" in done.stderr
    assert not (tmp_path / "ran").exists()
