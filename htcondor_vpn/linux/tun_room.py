"""The process that holds a network namespace for a tun device: it makes the namespace and what belongs into it.

It lives in new user, network and mount namespaces, where it has every capability and its maker has none. A socket stays
in the namespace in which it was made, whoever uses it: the maker asks for sockets, and gets them over a channel. Beside
the loopback the namespace has the tun device alone, so that nothing in it can go anywhere else.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux import links, wireguard_go
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.descriptors import close_all_but
from htcondor_vpn.linux.echoes import allow_echoes
from htcondor_vpn.linux.mounts import keep_mounts_to_ourselves
from htcondor_vpn.linux.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    KINDS,
    die_with_parent,
    new_user_namespace,
    unshare,
)
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.linux.tun import make_tun

_SYSCTLS = Path("/proc/sys/net")
#: No packet of the kernel's own goes into the tun: no router solicitation, no link-local address to be announced.
_QUIET = {"accept_ra": "0", "autoconf": "0", "addr_gen_mode": "1", "dad_transmits": "0"}


def fork_room(as_root: bool = False, on_host: bool = False) -> tuple[int, Channel]:
    """Forks the process; returns its number and a channel to it. It ends when the channel does, or its parent.

    In the user namespace it has the uid that it had, or is root. With `on_host`, for who is root already, it makes no
    namespace but that of its mounts, and what it makes is this host's.

    It first says {"ready": true} with descriptors of its namespaces (`KINDS`), or {"error", "cause", "remedy"}. Raises
    OSError where there can be no further process. Then it does what it is asked, in order, and answers each message:
    {"sockets": [family, type, protocol, count]}, {"tun": name}, {"wireguard_go": [program, link]}
    (`wireguard_go.Started`) with descriptors, {"configure": …} (see `_configure`) with {}, or what went wrong as
    {"errno", "said"} or as above.
    """
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    with suppress(BaseException):  # whatever it is: a forked child must not go on in its parent's code
        signal.set_wakeup_fd(-1)  # which is the loop's of the parent, and will be closed
        close_all_but({0, 1, 2, theirs.fileno()})
        _serve(theirs, _enter_host if on_host else functools.partial(_enter_new, 0 if as_root else None))
    os._exit(0)


def _enter_host() -> None:
    unshare(CLONE_NEWNS)
    die_with_parent(signal.SIGKILL)
    keep_mounts_to_ourselves()


def _enter_new(inside_id: int | None) -> None:
    new_user_namespace(CLONE_NEWNET | CLONE_NEWNS, inside_uid=inside_id, inside_gid=inside_id)
    die_with_parent(signal.SIGKILL)  # the new capabilities have reset it
    keep_mounts_to_ourselves()
    _make_quiet()
    _try_smaller_segments()
    allow_echoes()


def _serve(channel: Channel, enter: Callable[[], None]) -> None:
    try:
        enter()
    except (VpnError, OSError) as error:
        channel.send(_told(error))
        return
    namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS]
    _answer(channel, lambda: namespaces)
    while (received := channel.receive()) is not None:
        message = received[0]
        _answer(channel, lambda message=message: _do(message))  # type: ignore[misc]


def _told(error: VpnError | OSError) -> dict[str, Any]:
    cause, remedy = (error.cause, error.remedy) if isinstance(error, VpnError) else (str(error), "")
    return {"error": type(error).__name__, "cause": cause, "remedy": remedy}


def _answer(channel: Channel, work: Callable[[], list[int]]) -> None:
    """Sends what `work` returns, and keeps none of it."""
    descriptors: list[int] = []
    try:
        descriptors = work()
        channel.send({"ready": True}, descriptors)
    except VpnError as error:
        channel.send(_told(error))
    except (OSError, ValueError) as error:
        channel.send({"errno": getattr(error, "errno", None), "said": getattr(error, "strerror", None) or str(error)})
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _try_smaller_segments() -> None:
    """Has TCP notice by itself (RFC 4821) where packets of full size get lost without a word: a tunnel's own, too."""
    path = _SYSCTLS / "ipv4/tcp_mtu_probing"  # for IPv6 as well
    if path.exists():
        path.write_text("1")


def _make_quiet() -> None:
    for name, value in _QUIET.items():
        path = _SYSCTLS / "ipv6/conf/default" / name
        if path.exists():  # a kernel without IPv6 has nothing to say
            path.write_text(value)
    with Netlink() as netlink:
        netlink.do([links.set_up(links.LOOPBACK_INDEX)])


def _do(message: dict[str, Any]) -> list[int]:
    if "sockets" in message:
        return _sockets(*message["sockets"])
    if "tun" in message:
        return [make_tun(message["tun"])]
    if "wireguard_go" in message:
        return list(wireguard_go.start(*message["wireguard_go"]))
    if "mtu" in message:
        name, mtu = message["mtu"]
        with Netlink() as netlink:
            netlink.do([links.set_mtu(socket.if_nametoindex(name), mtu)])
        return []
    _configure(**message["configure"])
    return []


def _sockets(family: int, kind: int, protocol: int, count: int) -> list[int]:
    found: list[int] = []
    try:
        while len(found) < count:
            found.append(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol).detach())
    except OSError:
        if not found:
            raise
    return found


def _configure(
    name: str, mtu: int, queue_packets: int, addresses: list[str], routes: list[str], refused: list[str]
) -> None:
    """Sets the link `name` up, gives it `addresses`, and routes `routes` into it; `refused` are unreachable."""
    index = socket.if_nametoindex(name)
    requests = [links.set_up_as(index, mtu=mtu, queue_packets=queue_packets)]
    for address in map(ip_address, addresses):
        requests.append(links.add_address(index, address, address.max_prefixlen))
    requests += [links.add_link_route(ip_network(route), index) for route in routes]
    requests += [links.refuse_route(ip_network(route)) for route in refused]
    with Netlink() as netlink:
        netlink.do(requests)
