from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.programs import ProgramFailed
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.host import Host, outer_id
from htcondor_vpn.testbed.links import Link
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

PORT = 4711

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
    print("connected")
except OSError as error:
    print(error.strerror or error)
"""


def connect(host: Host, name: str, port: int = 80) -> str:
    return host.run([sys.executable, "-IS", "-c", CONNECT, name, str(port)]).stdout.strip()


def pair(site: Site, *, timeout_seconds: float = 60) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from the node to the DMZ, both ends in this process."""
    with site.dmz.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(plan.DMZ_INSIDE.v4), PORT))
        listener.listen()
        with ExitStack() as exits:
            client = exits.enter_context(site.node.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.settimeout(timeout_seconds)
            client.connect((str(plan.DMZ_INSIDE.v4), PORT))
            exits.pop_all()
        return client, listener.accept()[0]


def throughput_mbps(site: Site, length_bytes: int, *, up: bool) -> float:
    node, dmz = pair(site, timeout_seconds=60)
    source, target = (node, dmz) if up else (dmz, node)
    sender = threading.Thread(target=lambda: (source.sendall(bytes(length_bytes)), source.shutdown(socket.SHUT_WR)))
    with node, dmz:
        start = time.monotonic()
        sender.start()
        received = 0
        while chunk := target.recv(1 << 20):
            received += len(chunk)
        sender.join()
        assert received == length_bytes
        return received * 8 / 1e6 / (time.monotonic() - start)


@pytest.mark.parametrize("address", ["203.0.113.20", "2001:db8:1::20", "203.0.113.1", "2001:db8:1::1"])
def test_the_node_reaches_nothing_but_the_dmz(site: Site, services: WorldServices, address: str) -> None:
    assert connect(site.node, address) == "Network is unreachable"
    assert connect(site.dmz, address) == ("connected" if address.endswith("20") else "Connection refused")


def test_names_resolve_where_the_world_is_reachable(site: Site, services: WorldServices) -> None:
    name = f"http.{plan.ZONE}"
    assert "resolution" in connect(site.node, name)
    assert connect(site.dmz, name) == "connected"


@pytest.mark.parametrize("address", [str(address) for address in plan.DMZ_INSIDE])
def test_the_node_reaches_the_dmz(site: Site, address: str) -> None:
    assert connect(site.node, address, 9) == "Connection refused"


def test_the_dmz_forwards_only_for_the_direct_route(site: Site, services: WorldServices) -> None:
    with site.direct_route():
        assert [connect(site.node, str(address)) for address in plan.WORLD["http"]] == ["connected"] * 2
    assert connect(site.node, str(plan.WORLD["http"].v4)) == "Network is unreachable"
    assert site.dmz.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"


def test_users_have_no_power(site: Site) -> None:
    assert site.node.run(["id", "-u"]).stdout.strip() == str(outer_id("uid")) != "0"
    status = site.node.run(["grep", "-E", "Cap(Inh|Prm|Eff|Amb)", "/proc/self/status"]).stdout
    assert {line.split()[1] for line in status.splitlines()} == {"0" * 16}
    for argv in (
        ["ip", "link", "set", "eth0", "down"],
        ["ip", "route", "add", "default", "via", str(plan.DMZ_INSIDE.v4)],
        ["nsenter", "--net=/run/netns/world", "true"],
        ["nsenter", f"--net=/proc/{os.getpid()}/ns/net", "true"],
        ["nsenter", f"--user=/proc/{os.getpid()}/ns/user", "--preserve-credentials", "true"],
        ["unshare", "--net", "true"],
        ["sysctl", "-w", "net.ipv4.ip_unprivileged_port_start=0"],
    ):
        assert site.node.run(argv).returncode != 0, argv


def test_users_can_make_namespaces_as_on_any_node(site: Site) -> None:
    script = "ip link set lo up && mount -t tmpfs none /mnt && id -u"
    argv = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
    assert site.node.run([*argv, "sh", "-c", script]).stdout == "0\n"


def test_users_of_one_host_are_one_user(site: Site, tmp_path: Path) -> None:
    """As on a real machine, one command may look into the namespaces that another of the same user made."""
    made = site.node.start(["unshare", "--user", "--map-current-user", "--net", "sleep", "60"])
    link, ours = f"/proc/{made.pid}/ns/net", os.stat("/run/netns/node").st_ino
    deadline = time.monotonic() + 60
    while os.stat(link).st_ino in (ours, os.stat("/proc/self/ns/net").st_ino) and time.monotonic() < deadline:
        os.sched_yield()
    done = site.node.run(["nsenter", f"--target={made.pid}", "--user", "--net", "--preserve-credentials", "ip", "link"])
    made.kill()
    made.wait()
    assert "lo:" in done.stdout
    assert "eth0" not in done.stdout


def test_root_of_the_sandbox_may_change_a_host(site: Site) -> None:
    site.node.run(["ip", "link", "set", "lo", "mtu", "60000"], as_root=True, check=True)
    assert "mtu 60000" in site.node.run(["ip", "link", "show", "lo"]).stdout
    with pytest.raises(ProgramFailed, match="does not exist"):
        site.node.run(["ip", "link", "show", "nothing"], check=True)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL])
def test_signals_go_to_the_command_itself(site: Site, number: int) -> None:
    process = site.node.start(["sleep", "60"])
    process.send_signal(number)
    assert process.wait(60) == -number


def test_hosts_have_their_own_names_and_files(site: Site) -> None:
    for host, own in ((site.node, plan.NODE), (site.dmz, plan.DMZ_INSIDE), (site.world, plan.WORLD["cm"])):
        assert host.run(["hostname"]).stdout.strip() == host.name
        assert host.run(["getent", "ahostsv4", host.name]).stdout.split()[0] == str(own.v4)


def test_folder_environment_and_input_go_along(site: Site, tmp_path: Path) -> None:
    done = site.dmz.run(["sh", "-c", "pwd; echo $GREETING; cat"], cwd=tmp_path, env={"GREETING": "a b"}, stdin="in")
    assert done.stdout == f"{tmp_path}\na b\nin"


@pytest.mark.alone
@pytest.mark.parametrize("up", [True, False])
def test_rate(site: Site, link: Link, up: bool) -> None:
    link.shape(rate_mbps=80)
    rates = [throughput_mbps(site, 10_000_000, up=up) for _ in range(3)]
    assert 55 < max(rates) < 84, rates  # the first burst passes at once; a machine that is held up makes it slower
    link.shape()
    assert max(throughput_mbps(site, 50_000_000, up=up) for _ in range(3)) > 200


def connect_ms(site: Site) -> float:
    start = time.monotonic()
    for end in pair(site):
        end.close()
    return (time.monotonic() - start) * 1e3


@pytest.mark.alone
def test_delay(site: Site, link: Link) -> None:
    for delay_ms in (30, 5):
        link.shape(delay_ms=delay_ms)
        fastest_ms = min(connect_ms(site) for _ in range(5))  # of the others a busy machine may be a part
        assert 2 * delay_ms <= fastest_ms < 2 * delay_ms + 100
    assert max(throughput_mbps(site, 10_000_000, up=True) for _ in range(3)) > 20


@pytest.mark.alone
def test_loss(site: Site, link: Link) -> None:
    link.shape(loss=0.25)
    received = 0
    with site.dmz.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind((str(plan.DMZ_INSIDE.v4), PORT))
        target.settimeout(0.1)
        with site.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            for _ in range(10):
                for _ in range(100):
                    source.sendto(b"datagram", (str(plan.DMZ_INSIDE.v4), PORT))
                with suppress(TimeoutError):
                    while target.recv(100):
                        received += 1
    assert 600 < received < 880
    link.shape(loss=0.01, delay_ms=1)
    assert throughput_mbps(site, 3_000_000, up=False) > 1


def test_connections_survive_a_change_of_shape(site: Site, link: Link) -> None:
    node, dmz = pair(site)
    with node, dmz:
        for shape in ((None, 2.0, 0.0), (50.0, 0.0, 0.0), (None, 1.0, 0.1), (None, 0.0, 0.0)):
            link.shape(*shape)
            node.sendall(b"x" * 100_000)
            received = 0
            while received < 100_000:
                received += len(dmz.recv(1 << 20))


@pytest.mark.parametrize("delay_ms", [0, 1])
def test_a_blackhole_is_silent_and_ends(site: Site, link: Link, delay_ms: float) -> None:
    link.shape(delay_ms=delay_ms)
    link.blackhole()
    with pytest.raises(TimeoutError):
        pair(site, timeout_seconds=0.5)
    assert "LOWER_UP" in site.node.run(["ip", "link", "show", "eth0"]).stdout
    link.up()
    for end in pair(site):
        end.close()


def test_a_pulled_cable_shows(site: Site, link: Link) -> None:
    link.down()
    assert "LOWER_UP" not in site.node.run(["ip", "link", "show", "eth0"]).stdout
    link.up()
    for end in pair(site):
        end.close()


@pytest.mark.parametrize("shape", [(0, 0, 0), (-1, 0, 0), (None, -1, 0), (None, 0, 1), (None, 0, float("nan"))])
def test_impossible_shapes(link: Link, shape: tuple[float | None, float, float]) -> None:
    with pytest.raises(UsageError):
        link.shape(*shape)
