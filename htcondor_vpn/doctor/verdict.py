"""What follows from the findings: which engines and features work on the node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from htcondor_vpn.doctor.finding import Finding, Outcome

_BASE = ("kernel", "Python", "folder", "user namespaces", "mount namespaces", "catching connections")

#: What each engine takes. A name that ends in a blank stands for all findings that begin with it; one is enough.
ENGINES: Mapping[str, tuple[str, ...]] = {
    "stream": (*_BASE, "gateway "),
    "wireguard": (*_BASE, "tun devices", "seccomp notification", "wireguard-go", "server "),
    "openconnect": (*_BASE, "tun devices", "libopenconnect"),
    "proxy": _BASE,
    "socks5": _BASE,
    "ssh": (*_BASE, "ssh", "login node "),
}

FEATURES: Mapping[str, tuple[str, ...]] = {
    "connects that fail as they should, and ping": (*_BASE, "holding connects"),
    "a network for each job, limited and counted": (*_BASE, "nested namespaces", "job networks"),
    "containers and CVMFS inside": (*_BASE, "nested namespaces", "FUSE"),
}

#: What a pilot uses unless it is told otherwise.
DEFAULT = "stream"


@dataclass(frozen=True)
class Verdict:
    """Whether something works, and if not, the findings that it lacks."""

    works: bool
    lacks: tuple[str, ...] = ()


def judge(needs: Mapping[str, Sequence[str]], findings: Sequence[Finding]) -> dict[str, Verdict]:
    """Judges each name of `needs`. What was not looked at does not stand in the way, nor what cannot be told."""
    verdicts = {}
    for name, needed in needs.items():
        lacks = tuple(need.strip() for need in needed if _is_lacking(need, findings, name))
        verdicts[name] = Verdict(not lacks, lacks)
    return verdicts


def _is_lacking(need: str, findings: Iterable[Finding], name: str) -> bool:
    if need.endswith(" "):
        matching = [finding for finding in findings if finding.name.startswith(need)]
    else:
        matching = [finding for finding in findings if finding.name == need]
    strict = name in FEATURES  # a feature that works a little does not
    spoiling = (Outcome.BAD, Outcome.LIMITED) if strict else (Outcome.BAD,)
    return bool(matching) and all(finding.outcome in spoiling for finding in matching)
