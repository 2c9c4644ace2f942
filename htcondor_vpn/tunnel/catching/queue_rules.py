"""The rules by which packets wait until the far side has answered: each SYN, and each ICMP echo request.

They come in the two forms of which kernels have one or both. Of all packets only those match that begin something and
leave the pilot; every other one costs a look at its TCP flags. No queue has `bypass`: while nobody reads it nothing
begins (fail closed).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from htcondor_vpn.addresses import ECHO_QUEUE, HOLD_QUEUE, OWN_V4, OWN_V6
from htcondor_vpn.errors import CatcherUnavailable, ProgramMissing
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.nfqueue import WHOLE_BYTES, make_socket
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program

#: How many packets the kernel holds at most; the engine decides earlier which of them it drops.
_SYNS, _ECHOES = 4096, 512

log = logging.getLogger(__name__)


class Queues(NamedTuple):
    """The queues' sockets: of SYNs, of echo requests; None for what does not wait."""

    syns: socket.socket | None
    echoes: socket.socket | None


def nft_rules(*, syns: bool) -> str:
    """For nft(8); `syns` may stay out."""
    begins = ["icmp type echo-request", "icmpv6 type echo-request"]
    if syns:
        begins.insert(0, "tcp flags & (fin | syn | rst | ack) == syn")
    jumps = "\n        ".join(f"{begin} jump waiting" for begin in begins)
    return f"""
table inet htcondor_vpn {{
    chain begins {{
        type filter hook prerouting priority raw
        {jumps}
    }}
    chain waiting {{
        ip daddr {{ {", ".join(OWN_V4)} }} return
        ip6 daddr {{ {", ".join(OWN_V6)} }} return
        meta l4proto tcp queue num {HOLD_QUEUE}
        queue num {ECHO_QUEUE}
    }}
}}
"""


def xtables_rules(version: int, *, syns: bool) -> str:
    """The same for xtables' restore command of this IP version."""
    icmp, kind, own = ("icmp", "--icmp-type", OWN_V4) if version == 4 else ("icmpv6", "--icmpv6-type", OWN_V6)
    begins = [f"{icmp} {kind} echo-request"]
    if syns:
        begins.insert(0, "tcp --syn")
    lines = [
        "*raw", ":waiting - [0:0]",
        *(f"-A PREROUTING -p {begin} -j waiting" for begin in begins),
        f"-A waiting -d {','.join(own)} -j RETURN",
        f"-A waiting -p tcp -j NFQUEUE --queue-num {HOLD_QUEUE}",
        f"-A waiting -j NFQUEUE --queue-num {ECHO_QUEUE}",
        "COMMIT",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def queue_packets(nft: str, holding: str) -> Queues:
    """Adds the rules to those of this network namespace, where its kernel has any, and returns the queues' sockets.

    `holding` tells whether SYNs shall wait: "on", "off" or "auto"; raises `CatcherUnavailable` where that is "on" and
    they cannot.
    """
    syns = holding != "off"
    reasons: list[str] = []
    with ExitStack() as exits:
        try:
            echoes = exits.enter_context(make_socket(ECHO_QUEUE, _ECHOES, WHOLE_BYTES))
            held = exits.enter_context(make_socket(HOLD_QUEUE, _SYNS)) if syns else None
        except OSError as error:
            reasons.append(f"nfnetlink_queue: {error.strerror}")
        else:
            for way, add in (("nft", _add_by_nft), ("iptables", _add_by_xtables)):
                try:
                    add(nft, syns)
                except (ProgramFailed, ProgramMissing) as error:
                    said = error.stderr.strip().partition("\n")[0] if isinstance(error, ProgramFailed) else str(error)
                    reasons.append(f"{way}: {said}")
                else:
                    what = "connects and echo requests" if syns else "echo requests"
                    log.info("%s are held until the far side answers (%s)", what, way)
                    exits.pop_all()
                    return Queues(held, echoes)
    why = f"connects cannot be held until the far side answers: {'; '.join(reasons)}"
    if holding == "on":
        raise CatcherUnavailable(why, "modprobe nft_queue, or install iptables; or set HTCONDOR_VPN_HOLD_CONNECTS=auto")
    log.warning("%s; they succeed at once, a refusal is a reset, and nobody can ping", why)
    return Queues(None, None)


def _add_by_nft(nft: str, syns: bool) -> None:
    run_program([nft, "-f", "-"], stdin=nft_rules(syns=syns), preexec=capabilities_to_programs)


def _add_by_xtables(_: str, syns: bool) -> None:
    """By xtables' target of that name, in the form of xtables that speaks to nftables and needs no lock file."""
    names = {4: "iptables-nft-restore", 6: "ip6tables-nft-restore"}
    programs = {version: find_program(name, "iptables") for version, name in names.items()}
    try:
        for version, program in programs.items():
            rules = xtables_rules(version, syns=syns)
            run_program([program, "--noflush"], stdin=rules, preexec=capabilities_to_programs)
    except ProgramFailed:
        _remove(programs.values())  # a queue that nobody reads would hold them for ever
        raise


def _remove(programs: Iterable[str]) -> None:
    for program in programs:
        run_program([program], stdin="*raw\nCOMMIT\n", preexec=capabilities_to_programs)
