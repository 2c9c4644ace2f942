"""The rule that holds each SYN in a queue until the far side has answered, in the form that this kernel has.

Of all packets only those that begin a connection, and leave the pilot, match; every other one costs a look at its TCP
flags. The queue has no `bypass`: while nobody reads it nothing begins (fail closed).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable

from htcondor_vpn.addresses import HOLD_QUEUE, OWN_V4, OWN_V6
from htcondor_vpn.errors import CatcherUnavailable, ProgramMissing
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.nfqueue import make_socket
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program

log = logging.getLogger(__name__)

NFT = f"""
table inet htcondor_vpn {{
    chain hold {{
        type filter hook prerouting priority raw
        tcp flags & (fin | syn | rst | ack) == syn jump held
    }}
    chain held {{
        ip daddr {{ {", ".join(OWN_V4)} }} return
        ip6 daddr {{ {", ".join(OWN_V6)} }} return
        queue num {HOLD_QUEUE}
    }}
}}
"""


def xtables(own: Iterable[str]) -> str:
    """The same for xtables' restore commands, of one IP version."""
    return (
        "*raw\n:held - [0:0]\n-A PREROUTING -p tcp --syn -j held\n"
        f"-A held -d {','.join(own)} -j RETURN\n-A held -j NFQUEUE --queue-num {HOLD_QUEUE}\nCOMMIT\n"
    )


def hold(nft: str, mode: str) -> socket.socket | None:
    """Has this network namespace's SYNs wait, and returns the queue's socket; None if that is not wanted or possible.

    `mode` is "on", "off" or "auto"; raises `CatcherUnavailable` where it is "on" and cannot be.
    """
    if mode == "off":
        log.info("connects are not held, as HTCONDOR_VPN_HOLD_CONNECTS says")
        return None
    reasons = []
    try:
        queue = make_socket(HOLD_QUEUE)
    except OSError as error:
        reasons.append(f"nfnetlink_queue: {error.strerror}")
    else:
        for way, add in (("nft", _add_by_nft), ("iptables", _add_by_xtables)):
            try:
                add(nft)
            except (ProgramFailed, ProgramMissing) as error:
                said = error.stderr.strip().partition("\n")[0] if isinstance(error, ProgramFailed) else str(error)
                reasons.append(f"{way}: {said}")
            else:
                log.info("connects are held until the far side answers (%s)", way)
                return queue
        queue.close()
    why = f"connects cannot be held until the far side answers: {'; '.join(reasons)}"
    if mode == "on":
        raise CatcherUnavailable(why, "modprobe nft_queue, or install iptables; or set HTCONDOR_VPN_HOLD_CONNECTS=auto")
    log.warning("%s; they succeed at once, and a refusal is a reset", why)
    return None


def _add_by_nft(nft: str) -> None:
    run_program([nft, "-f", "-"], stdin=NFT, preexec=capabilities_to_programs)


def _add_by_xtables(_: str) -> None:
    """By xtables' target of that name, in the form of xtables that speaks to nftables and needs no lock file."""
    families = (("iptables-nft-restore", OWN_V4), ("ip6tables-nft-restore", OWN_V6))
    programs = [(find_program(name, "iptables"), own) for name, own in families]
    try:
        for program, own in programs:
            run_program([program, "--noflush"], stdin=xtables(own), preexec=capabilities_to_programs)
    except ProgramFailed:
        for program, _own in programs:  # a queue that nobody reads would hold them for ever
            run_program([program], stdin="*raw\nCOMMIT\n", preexec=capabilities_to_programs)
        raise
