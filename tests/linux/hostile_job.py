"""A job that tries everything it should not be able to do, and tells how each attempt ended, as one JSON object.

Usage: hostile_job.py TARGETS.json. An attempt that is refused raises; one that succeeds says what it gained.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
ATTEMPTS: dict[str, Callable[[Targets], object]] = {}

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x00020000
IP_FREEBIND, IP_TRANSPARENT, IPV6_FREEBIND = 15, 19, 78
SECONDS = 5.0
WRAPPER = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """An attempt failed, and not by an error of the kernel's."""


def attempt(function: Callable[[Targets], object]) -> Callable[[Targets], object]:
    ATTEMPTS[function.__name__] = function
    return function


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def program(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise Refused(done.stderr.strip() or f"code {done.returncode}")
    return f"{argv} worked: {done.stdout}"


def connected(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=SECONDS) as connection:
        connection.settimeout(SECONDS)
        connection.sendall(b"hello\n")
        said = connection.recv(100)
    if not said:
        raise Refused("the connection ended without a word")
    return f"{address} port {port} said {said!r}"


def first_success(*works: Callable[[], object]) -> object:
    """What one of several ways gained; raises what refused the last if none did."""
    refusal: Exception = Refused("there was nothing to try")
    for work in works:
        try:
            return work()
        except (OSError, Refused) as error:
            refusal = error
    raise refusal


# Namespaces and processes of others


def enter(pid: object, kind: str) -> str:
    with open(f"/proc/{pid}/ns/{kind}") as namespace:
        call("setns", namespace.fileno(), 0)
    return f"in the {kind} namespace of {pid}"


def every_process_of(targets: Targets) -> list[int]:
    return [targets[name] for name in ("supervisor", "broker", "engine", "starter", "victim")] + [WRAPPER, 1]


@attempt
def enters_another_network(targets: Targets) -> object:
    return first_success(*(lambda pid=pid: enter(pid, "net") for pid in every_process_of(targets)))


@attempt
def enters_another_user_namespace(targets: Targets) -> object:
    return first_success(*(lambda pid=pid: enter(pid, "user") for pid in every_process_of(targets)))


@attempt
def reads_the_memory_of_others(targets: Targets) -> object:
    return first_success(*(lambda pid=pid: first_byte(f"/proc/{pid}/environ") for pid in every_process_of(targets)))


def first_byte(path: str) -> str:
    with open(path, "rb") as file:
        return f"{path} begins with {file.read(1)!r}"


@attempt
def takes_descriptors_of_others(targets: Targets) -> object:
    """Their numbers are seen by every process of the account (proc(5)), and no more."""
    descriptors = [f"/proc/{pid}/fd/{number}" for pid in every_process_of(targets) for number in range(20)]
    return first_success(*(lambda path=path: os.readlink(path) for path in descriptors))


@attempt
def takes_the_parent_of_its_user_namespace(targets: Targets) -> object:
    import fcntl

    with open("/proc/self/ns/user") as own:
        above = fcntl.ioctl(own, 0xB702)  # NS_GET_PARENT
    call("setns", above, 0)
    return "in the pilot's user namespace"


@attempt
def gains_a_capability(targets: Targets) -> object:
    status = Path("/proc/self/status").read_text()
    held = [line for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb"))]
    if all(int(line.split()[1], 16) == 0 for line in held):
        raise Refused("it has none")
    return held


# Its own network


@attempt
def removes_its_qdisc(targets: Targets) -> object:
    return program("tc", "qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", "1000")


@attempt
def adds_an_address(targets: Targets) -> object:
    return program("ip", "address", "add", "198.19.77.77/32", "dev", "eth0")


@attempt
def adds_an_ipv6_address(targets: Targets) -> object:
    return program("ip", "address", "add", "2001:db8:7::7/128", "dev", "eth0")


@attempt
def changes_its_route(targets: Targets) -> object:
    return program("ip", "route", "replace", "default", "dev", "eth0")


@attempt
def changes_its_mtu(targets: Targets) -> object:
    return program("ip", "link", "set", "eth0", "mtu", "1280")


@attempt
def makes_a_link(targets: Targets) -> object:
    return program("ip", "link", "add", "mine", "type", "veth")


@attempt
def makes_a_rule(targets: Targets) -> object:
    return program("nft", "add", "table", "inet", "mine")


@attempt
def changes_its_network_as_root_of_a_namespace_below(targets: Targets) -> object:
    return program("unshare", "--user", "--map-root-user", "ip", "link", "set", "eth0", "mtu", "1280")


@attempt
def changes_a_setting_of_the_kernel(targets: Targets) -> object:
    settings = ("ipv4/ip_forward", "ipv4/ip_nonlocal_bind", "ipv4/conf/eth0/rp_filter", "ipv6/conf/eth0/accept_ra")
    return first_success(*(lambda name=name: Path("/proc/sys/net", name).write_text("1") for name in settings))


# Packets


@attempt
def makes_a_raw_socket(targets: Targets) -> object:
    kinds = ((socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), (socket.AF_INET6, socket.SOCK_RAW, 58),
             (socket.AF_PACKET, socket.SOCK_RAW, 0x0300))  # fmt: skip
    return first_success(*(lambda kind=kind: socket.socket(*kind) for kind in kinds))


@attempt
def makes_a_transparent_socket(targets: Targets) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def question(name: str) -> bytes:
    """A question for a name's address (RFC 1035)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)


@attempt
def sends_with_an_ipv4_address_of_another(targets: Targets) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((targets["victim_v4"], targets["victim_port"]))
        sock.sendto(question("http.site.example"), (targets["resolver_v4"], 53))
    return "sent"


def forges_ipv6(targets: Targets) -> None:
    """The kernel lets everyone do that (IPV6_FREEBIND). What comes of it, the victim knows."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        for target in ((targets["resolver_v6"], 53), (targets["far_v6"], 53)):
            with socket.socket(socket.AF_INET6, kind) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                sock.settimeout(1)
                sock.bind((targets["victim_v6"], targets["victim_port"]))
                try:
                    sock.connect(target)
                    sock.send(question("http.site.example"))
                except OSError:
                    continue


# Who can be reached


@attempt
def reaches_another_job(targets: Targets) -> object:
    port = targets["victim_port"]
    return first_success(
        lambda: connected(targets["victim_v4"], port), lambda: connected(targets["victim_v6"], port)
    )


def sends_datagrams_to_another_job(targets: Targets) -> None:
    """Whether one arrives, the victim knows."""
    for family, name in ((socket.AF_INET, "victim_v4"), (socket.AF_INET6, "victim_v6")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"hello", (targets[name], targets["victim_port"]))


@attempt
def reaches_another_port_of_the_starter(targets: Targets) -> object:
    hosts = ("127.0.0.1", targets["resolver_v4"], targets["resolver_v6"], *neighbours())
    return first_success(*(lambda host=host: connected(host, targets["starter_port"]) for host in hosts))


def neighbours() -> list[str]:
    """The addresses at the other end of its link."""
    routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True).stdout
    routes += subprocess.run(["ip", "-6", "route"], capture_output=True, text=True).stdout
    return [line.split("via ")[1].split()[0] for line in routes.splitlines() if "via " in line]


@attempt
def reaches_the_engine_in_the_pilot(targets: Targets) -> object:
    hosts = (targets["resolver_v4"], *neighbours())
    return first_success(*(lambda host=host: connected(host, 15001) for host in hosts))


@attempt
def reaches_a_service_of_the_node(targets: Targets) -> object:
    port = targets["node_port"]
    return first_success(*(lambda host=host: connected(host, port) for host in ("127.0.0.1", *targets["node"])))


@attempt
def reaches_a_service_of_the_gateway(targets: Targets) -> object:
    port = targets["node_port"]
    return first_success(*(lambda host=host: connected(host, port) for host in targets["gateway"]))


@attempt
def reaches_the_metadata_service(targets: Targets) -> object:
    hosts = ("169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200")
    return first_success(*(lambda host=host: connected(host, 80) for host in hosts))


@attempt
def reaches_an_abstract_socket(targets: Targets) -> object:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect("\0" + targets["abstract"])


@attempt
def joins_a_job_by_the_brokers_socket(targets: Targets) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(targets["run_dir"] + "/broker.sock")
        client.sendall(b"join 0\n")
        said = client.recv(1000)
    if said.startswith(b"no "):
        raise Refused(said.decode())
    return said.decode()


# The pilot's files


@attempt
def rewrites_the_wrapper_for_later_jobs(targets: Targets) -> object:
    wrapper = Path(targets["run_dir"], "libexec/job-wrapper")
    return first_success(
        lambda: wrapper.write_text("#!/bin/sh\nexec \"$@\"\n"), wrapper.unlink, lambda: wrapper.rename(f"{wrapper}.old")
    )


@attempt
def moves_the_folder_of_the_wrapper(targets: Targets) -> object:
    run_dir = targets["run_dir"]
    return first_success(
        lambda: os.rename(f"{run_dir}/libexec", f"{run_dir}/old"), lambda: os.rename(run_dir, f"{run_dir}.old")
    )


@attempt
def takes_the_mounts_away(targets: Targets) -> object:
    """In a mount namespace of its own, with all capabilities there: what is mounted on the run folder stays."""
    libexec = targets["run_dir"] + "/libexec"
    return first_success(
        lambda: program("unshare", "--user", "--map-root-user", "--mount", "umount", libexec),
        lambda: program("unshare", "--user", "--map-root-user", "--mount", "mount", "-o", "remount,bind,rw", libexec),
    )


# Exhaustion


@attempt
def makes_namespaces_without_end(targets: Targets) -> object:
    """Each in a child that stays; the other jobs of the same account need some too."""
    ready, tell = os.pipe()
    children = []
    try:
        for _ in range(targets["namespaces"]):
            child = os.fork()
            if child == 0:
                made = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
                os.write(tell, b"y" if made else b"n")
                os.read(0, 1)
                os._exit(0)
            children.append(child)
            if os.read(ready, 1) == b"n":
                raise Refused(f"after {len(children) - 1}")
        return f"{len(children)} namespaces"
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def outcome(work: Callable[[Targets], object], targets: Targets) -> list[object]:
    """Runs an attempt in a child: where it succeeds, the later ones start where they should all the same."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found: list[object] = [True, str(work(targets))]
        except (OSError, Refused, subprocess.TimeoutExpired) as error:
            found = [False, str(error)]
        os.write(tell, json.dumps(found).encode()[:60000])
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else [None, "the attempt itself is broken"]


def main() -> None:
    targets = json.loads(Path(sys.argv[1]).read_text())
    outcomes = {name: outcome(work, targets) for name, work in ATTEMPTS.items()}
    forges_ipv6(targets)
    sends_datagrams_to_another_job(targets)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
