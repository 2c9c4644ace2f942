"""Forwarding by the kernel, in this host's name, for a gateway that is root: nftables and two sysctls, for a while.

They are set by a process of their own, which takes them back when its maker has ended, in whichever way. Where pilots
may go is decided as by `PublicPolicy`; addresses that embed others are refused.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import TracebackType

from jinja2 import Environment, PackageLoader, StrictUndefined

from htcondor_vpn.denied_destinations import DeniedDestination
from htcondor_vpn.errors import NamespacesUnavailable, by_name
from htcondor_vpn.gateway.serving.destinations import PRIVATE
from htcondor_vpn.gateway.trust.folder import write_atomically
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import fork_child
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.special_addresses import NEVER, Address, Network

_TABLE = "htcondor_vpn_gateway"  # and the kind of gateway
_FORWARDING = [Path("/proc/sys/net") / name for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
_BEFORE = Path("/run/htcondor-vpn-gateway.forwarding")
#: NAT64, 6to4, Teredo.
_EMBEDDING = [ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32")]


@dataclass(frozen=True)
class Pilots:
    """The links by which the pilots of a `kind` of gateway come, whose names begin with `device`, and their networks.

    They may ask `name_servers`, and this host at the addresses of its `resolver`. With `check_sources` what comes from
    an address that is not behind its link is dropped (nft_fib), and neighbours are answered; with `only_these` nothing
    else is forwarded. What leaves by the link `tunnel` is judged by who carries it on, and keeps its source.
    Each address may have `most_connections` at a time (nft_connlimit), 0 for any number: all share this host's memory
    of connections.
    """

    kind: str
    device: str
    networks: tuple[Network, Network]
    name_servers: Sequence[Address] = ()
    resolver: Sequence[Address] = ()
    check_sources: bool = False
    only_these: bool = False
    tunnel: str = ""
    most_connections: int = 0

    @property
    def table(self) -> str:
        """The name of their table of rules."""
        return f"{_TABLE}_{self.kind}"


class KernelNat:
    """In force inside, for `pilots`.

    A `folder` is made besides, which every account may pass through, and is removed with what is in it.
    """

    def __init__(
        self,
        pilots: Pilots,
        allow: Sequence[Network],
        deny: Sequence[DeniedDestination],
        folder: Path | None = None,
    ) -> None:
        self._table, self._rules = pilots.table, rules(pilots, allow, deny)
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
        return lambda channel: _keep(channel, nft, self._table, self._rules, self._folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.channel.finish()
        self._keeper.reap()


def _keep(channel: Channel, nft: str, table: str, text: str, folder: Path | None) -> None:
    """Sets everything, and takes it back when the other end of the channel is gone."""
    remove = f"table inet {table}\ndelete table inet {table}\n"
    try:
        before = _forwarding_before()
        run_program([nft, "-f", "-"], stdin=remove + text)  # one that was left is replaced
        for path in before:
            path.write_text("1")
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)  # whatever the umask is
    except (ProgramFailed, OSError, ValueError) as error:
        said = error.stderr.strip() if isinstance(error, ProgramFailed) else str(error)
        raise NamespacesUnavailable(f"this host cannot be made to forward: {said}", "start it as root") from error
    try:
        channel.send({"set": True})
        channel.receive()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        run_program([nft, "-f", "-"], stdin=remove)
        if _TABLE not in run_program([nft, "list", "tables"]):  # else a gateway of another kind needs it still
            for path, value in before.items():
                path.write_text(value)
            _BEFORE.unlink(missing_ok=True)


def _forwarding_before() -> dict[Path, str]:
    """What the settings were before the first gateway of this host began, which the last one restores."""
    before = {path: path.read_text() for path in _FORWARDING if path.exists()}
    try:
        noted = json.loads(_BEFORE.read_text())
    except FileNotFoundError:
        noted = {str(path): value for path, value in before.items()}
        write_atomically(_BEFORE, json.dumps(noted).encode(), 0o644)  # half of it would hinder every later start
        return before
    return {path: str(noted.get(str(path), value)) for path, value in before.items()}


def rules(pilots: Pilots, allow: Sequence[Network], deny: Sequence[DeniedDestination]) -> str:
    """The nftables rules; the first that fits decides."""
    decided = [(network, "accept") for network in allow]
    decided += [(denied.network, "goto refuse") for denied in deny if denied.ports is None]
    decided.sort(key=lambda each: (-each[0].prefixlen, each[1]))  # the narrower first, and "accept" of two the same
    environment = Environment(
        loader=PackageLoader("htcondor_vpn.gateway"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  it is no HTML
    )  # fmt: skip
    return environment.get_template("kernel-nat.nft").render(
        table=pilots.table, device=pilots.device, networks=pilots.networks,
        name_servers=pilots.name_servers, resolver=pilots.resolver, check_sources=pilots.check_sources,
        only_these=pilots.only_these, tunnel=pilots.tunnel, most_connections=pilots.most_connections,
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
