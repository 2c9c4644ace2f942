"""The hostile job's attempts by rarer interfaces of the kernel, beside those of hostile_job.py, and all in turn.

Usage: hostile_interfaces.py TARGETS.json
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

from hostile_job import (
    CLONE_NEWNET,
    CLONE_NEWUSER,
    SECONDS,
    Refused,
    Targets,
    attempt,
    call,
    connected,
    every_process_of,
    first_success,
    libc,
    main,
    neighbours,
    program,
    question,
)

#: The same on all machines since Linux 5.3 (asm-generic/unistd.h).
PIDFD_OPEN, PIDFD_GETFD = 434, 438
PTRACE_SEIZE = 0x4206
SIOCGSKNS = 0x894C
TUNSETIFF, IFF_TUN = 0x400454CA, 1
IPPROTO_UDPLITE = 136
LOOSE_SOURCE_ROUTE = 0x83


def system_call(number: int, *arguments: int) -> int:
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        call("syscall", number, *arguments)  # for its error
    return result


# Processes of others


@attempt
def takes_descriptors_by_pidfd(targets: Targets) -> object:
    def take(pid: int, number: int) -> str:
        return os.readlink(f"/proc/self/fd/{system_call(PIDFD_GETFD, system_call(PIDFD_OPEN, pid, 0), number, 0)}")

    others = [pid for pid in every_process_of(targets) if pid != 1]
    return first_success(*(lambda pid=pid, n=n: take(pid, n) for pid in others for n in range(20)))


@attempt
def enters_namespaces_by_pidfd(targets: Targets) -> object:
    def enter(pid: int, kinds: int) -> str:
        call("setns", system_call(PIDFD_OPEN, pid, 0), kinds)
        return f"in {pid}'s"

    kinds = CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNET
    return first_success(*(lambda pid=pid, k=k: enter(pid, k) for pid in every_process_of(targets) for k in kinds))


@attempt
def traces_others(targets: Targets) -> object:
    def trace(pid: int) -> str:
        call("ptrace", PTRACE_SEIZE, pid, 0, 0)
        return f"traces {pid}"

    return first_success(*(lambda pid=pid: trace(pid) for pid in every_process_of(targets)))


@attempt
def walks_the_root_of_others(targets: Targets) -> object:
    ways = [f"/proc/{pid}/{way}" for pid in every_process_of(targets) for way in ("root", "cwd")]
    return first_success(*(lambda way=way: os.listdir(way) for way in ways))


@attempt
def takes_a_namespace_of_a_socket(targets: Targets) -> object:
    """Of a connection to the broker, or of any: whose network namespace it is (SIOCGSKNS)."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(targets["run_dir"] + "/broker.sock")
        namespace = fcntl.ioctl(sock, SIOCGSKNS)
    call("setns", namespace, CLONE_NEWNET)
    return os.readlink("/proc/self/ns/net")


# Its network, from a namespace below in which it may do everything


@attempt
def moves_its_link_below(targets: Targets) -> object:
    with_child = "sleep 5 >/dev/null 2>&1 & ip link set eth0 netns $!"
    return first_success(
        lambda: program("sh", "-c", f"unshare -Urn {with_child}"),
        lambda: program("unshare", "-Ur", "sh", "-c", with_child),
    )


@attempt
def puts_a_link_into_its_network_from_below(targets: Targets) -> object:
    return program("sh", "-c", "unshare -Urn ip link add one type veth peer name mine netns $$")


@attempt
def makes_a_tun(targets: Targets) -> object:
    with open("/dev/net/tun", "r+b", buffering=0) as tun:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"mine", IFF_TUN))
    return "made"


@attempt
def marks_its_packets(targets: Targets) -> object:
    """The marks by which they are told apart, and the class of a queue."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return first_success(
            lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1),
            lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10002),
        )


# Other ways to others


def victims(targets: Targets) -> list[tuple[int, str]]:
    return [(socket.AF_INET, targets["victim_v4"]), (socket.AF_INET6, targets["victim_v6"])]


@attempt
def reaches_another_job_by_its_chirp_port_or_the_hooks(targets: Targets) -> object:
    """The job's own loopback has its own starter's port alone."""
    ports = (targets["victim_chirp_port"], 15002)
    hosts = ("127.0.0.1", targets["victim_v4"], targets["resolver_v4"], *neighbours())
    return first_success(*(lambda host=host, port=port: connected(host, port) for host in hosts for port in ports))


@attempt
def reaches_another_job_by_a_route_that_it_names(targets: Targets) -> object:
    """By way of the pilot's address: IPv4's source route, IPv6's routing headers (types 0, 2 and 4)."""

    def by_source_route() -> str:
        with socket.socket(socket.AF_INET) as sock:
            sock.settimeout(SECONDS)
            way = socket.inet_aton(targets["victim_v4"])
            option = struct.pack("!BBBB", LOOSE_SOURCE_ROUTE, 7, 4, way[0]) + way[1:] + b"\0"
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
            sock.connect((targets["resolver_v4"], targets["victim_port"]))
            return str(sock.recv(100))

    def by_routing_header(kind: int) -> str:
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(SECONDS)
            address = socket.inet_pton(socket.AF_INET6, targets["victim_v6"])
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, struct.pack("!BBBBI", 0, 2, kind, 1, 0) + address)
            sock.connect((targets["resolver_v6"], targets["victim_port"]))
            return str(sock.recv(100))

    return first_success(by_source_route, *(lambda kind=kind: by_routing_header(kind) for kind in (0, 2, 4)))


@attempt
def pings_another_job_or_a_host_of_the_site(targets: Targets) -> object:
    def ping(family: int, host: str) -> str:
        protocol, kind = (1, 8) if family == socket.AF_INET else (58, 128)
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.settimeout(1)
            sock.connect((host, 0))
            sock.send(struct.pack("!BBHHH", kind, 0, 0, 0, 1))
            return f"{host} answered {sock.recv(100)!r}"

    hosts = [*victims(targets), *((socket.AF_INET6 if ":" in host else socket.AF_INET, host)
             for host in (*targets["node"], "169.254.169.254"))]  # fmt: skip
    return first_success(*(lambda family=f, host=host: ping(family, host) for f, host in hosts))


@attempt
def connects_by_a_protocol_that_nobody_carries(targets: Targets) -> object:
    """SCTP, DCCP, MPTCP and UDP-Lite, where the kernel has them."""

    def connect(kind: int, protocol: int, family: int, host: str) -> str:
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(1)
            sock.connect((host, targets["victim_port"]))
            sock.send(b"hello")
            return f"{host} said {sock.recv(100)!r}"

    protocols = ((socket.SOCK_STREAM, 132), (6, 33), (socket.SOCK_STREAM, 262), (socket.SOCK_DGRAM, IPPROTO_UDPLITE))
    return first_success(*(lambda k=kind, p=protocol, f=family, h=host: connect(k, p, f, h)
                           for kind, protocol in protocols for family, host in victims(targets)))  # fmt: skip


@attempt
def asks_another_name_server(targets: Targets) -> object:
    """One of the node's, the site's or a cloud's: what would answer beside the tunnel."""

    def ask(kind: int, host: str) -> str:
        asked = question("http.site.example")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
            sock.settimeout(1)
            sock.connect((host, 53))
            sock.send(asked if kind == socket.SOCK_DGRAM else struct.pack("!H", len(asked)) + asked)
            if not (answer := sock.recv(512)):
                raise Refused("the connection ended without a word")
            return f"{host} answered {answer!r}"

    hosts = ("127.0.0.53", *targets["node"], *targets["gateway"], "169.254.169.253", "fd00:ec2::253", *neighbours())
    kinds = socket.SOCK_DGRAM, socket.SOCK_STREAM
    return first_success(*(lambda host=host, kind=kind: ask(kind, host) for host in hosts for kind in kinds))


def sends_to_all(targets: Targets) -> None:
    """Multicast and broadcast to the victim's port; whether one arrives, the victim knows."""
    port = targets["victim_port"]
    index = socket.if_nametoindex("eth0")
    for family, host in ((socket.AF_INET, "224.0.0.1"), (socket.AF_INET, "255.255.255.255"),
                         (socket.AF_INET6, "ff02::1"), (socket.AF_INET6, "ff0e::1")):  # fmt: skip
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                sock.sendto(b"hello", (host, port) if family == socket.AF_INET else (host, port, 0, index))
            except OSError:
                continue


if __name__ == "__main__":
    sends_to_all(json.loads(Path(sys.argv[1]).read_text()))
    main()
