"""Forwarding by the kernel, in this host's name, for a gateway that is root: nftables and two sysctls, for a while.

They are set by a process of their own, which takes them back when its maker has ended, in whichever way. Where pilots
may go is decided as by `PublicPolicy`; addresses that embed others are refused.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import TracebackType

from jinja2 import Environment, PackageLoader, StrictUndefined

from htcondor_vpn.addresses import OCSERV_V4, OCSERV_V6
from htcondor_vpn.denied_destinations import DeniedDestination
from htcondor_vpn.errors import NamespacesUnavailable, by_name
from htcondor_vpn.gateway.serving.destinations import PRIVATE
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import fork_child
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.special_addresses import NEVER, Address, Network

_TABLE = "htcondor_vpn_gateway"
_FORWARDING = [Path("/proc/sys/net") / name for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
#: NAT64, 6to4, Teredo.
_EMBEDDING = [ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32")]


class KernelNat:
    """In force inside: for what comes from links whose names begin with `device`.

    A `folder` is made besides, which every account may pass through, and is removed with what is in it.
    """

    def __init__(
        self, device: str, allow: Sequence[Network], deny: Sequence[DeniedDestination], folder: Path | None = None
    ) -> None:
        self._rules = rules(device, allow, deny, own_name_servers())
        self._folder = folder

    def __enter__(self) -> KernelNat:
        nft = find_program("nft", "nftables")
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._keeper = fork_child("keeper of the rules", self._keep_with(nft), mask)
        received = self._keeper.channel.receive()
        if received is None or "error" in received[0]:
            self._keeper.reap()
            told = received[0] if received else {"error": "", "cause": "the rules' keeper died", "remedy": ""}
            raise by_name(told["error"], told["cause"], told["remedy"])
        return self

    def _keep_with(self, nft: str) -> Callable[[Channel], None]:
        return lambda channel: _keep(channel, nft, self._rules, self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.channel.finish()
        self._keeper.reap()


def _keep(channel: Channel, nft: str, text: str, folder: Path | None) -> None:
    """Sets everything, and takes it back when the other end of the channel is gone."""
    before = {path: path.read_text() for path in _FORWARDING if path.exists()}
    remove = f"table inet {_TABLE}\ndelete table inet {_TABLE}\n"
    try:
        run_program([nft, "-f", "-"], stdin=remove + text)  # one that was left is replaced
        for path in before:
            path.write_text("1")
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)  # whatever the umask is
    except (ProgramFailed, OSError) as error:
        said = error.stderr.strip() if isinstance(error, ProgramFailed) else str(error)
        raise NamespacesUnavailable(f"this host cannot be made to forward: {said}", "start it as root") from error
    try:
        channel.send({"set": True})
        channel.receive()
    finally:
        for path, value in before.items():
            path.write_text(value)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        run_program([nft, "-f", "-"], stdin=remove)


def rules(device: str, allow: Sequence[Network], deny: Sequence[DeniedDestination], servers: Sequence[Address]) -> str:
    """The nftables rules; the first that fits decides."""
    decided = [(network, "accept") for network in allow]
    decided += [(denied.network, "goto refuse") for denied in deny if denied.ports is None]
    decided.sort(key=lambda each: (-each[0].prefixlen, each[1]))  # the narrower first, and "accept" of two the same
    environment = Environment(
        loader=PackageLoader("htcondor_vpn.gateway"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  it is no HTML
    )  # fmt: skip
    return environment.get_template("kernel-nat.nft").render(
        device=device, network_v4=OCSERV_V4, network_v6=OCSERV_V6, name_servers=servers,
        never=[network for network, _ in NEVER], denied_ports=[each for each in deny if each.ports is not None],
        decided=decided, private=[*PRIVATE, *_EMBEDDING],
        family=lambda address: "ip" if address.version == 4 else "ip6",
    )  # fmt: skip


def own_name_servers(resolv_conf: Path = Path("/etc/resolv.conf")) -> list[Address]:
    """The name servers of this host that others can ask too: not one on its loopback."""
    found: list[Address] = []
    for words in map(str.split, resolv_conf.read_text().splitlines()):
        if len(words) > 1 and words[0] == "nameserver":
            address = ip_address(words[1].partition("%")[0])
            if not address.is_loopback and not address.is_link_local:
                found.append(address)
    return found
