"""The rules for the jobs' links, as texts for nft(8).

One table serves all jobs. Its first rule is a verdict map, which leads from a job's link to the chain of what that job
may reach: a job costs two elements and no rule, no packet meets a rule of another policy, and jobs for whom the same
was decided share a chain. What counts is sets that get an element by the first packet of each key, with a counter:

    prerouting ── sent ── sent_by: link → the policy's chain ─┬─ count_sent
                                                              └─ refuse: marked, and told at its end by `refused`
    postrouting ─ received ─ received_by: link → the policy's chain ── count_received

They are on the way of every packet of every job, so a packet meets as few of them as can be. What comes by a link that
the map does not know is dropped. Without classes nothing is counted here but flows and connections: the link itself has
the rest. With them, one more map leads from the address at the far side to its class (`spans`), whose number becomes
the packet's mark; only where a policy has protocols or ports, and for such addresses, rules are tried one by one.

Needs what Linux 4.18 has: verdict maps, dynamic sets with counters (`update`), interval sets and maps, concatenated
keys, several hooks; of newer things, none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_network
from itertools import groupby

from htcondor_vpn.addresses import JOB_LINK, OWN_V4, OWN_V6, PILOT_V4, POLICY_MARK, REFUSAL_MARKS, TPROXY_MARK
from htcondor_vpn.jobnet.counting.spans import Span, spans
from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.special_addresses import Address, Network

TABLE = "htcondor_vpn_jobs"

#: Class number n, from 1 on, has the mark FIRST_CLASS_MARK + n while a packet is counted; what is in none has no mark
#: (0). Marks between say by what a packet was refused.
FIRST_CLASS_MARK = 16

#: Before what catches the packets and holds connects: what a policy forbids is nobody else's business.
_EARLY = "raw - 10"

#: How many flows (link, address, protocol, port) are told apart at a time; what comes beyond is counted by class only.
MOST_FLOWS = 1 << 16

#: The group by which the names that jobs are told, and refusals of datagrams, come to the broker.
LOG_GROUP = 4


def table_rules(*, logging: bool) -> str:
    """The table, without any policy's chain; `logging` needs the kernel's module nft_log."""
    sets = "".join(
        f"    set {name} {{ type {key}; size {MOST_FLOWS}; flags dynamic; }}\n"
        for name, key in {
            "sent_bytes": "iface_index . mark",
            "received_bytes": "iface_index . mark",
            "connections": "iface_index . mark",
            "sent_flows_4": "iface_index . ipv4_addr . inet_proto . inet_service . mark",
            "sent_flows_6": "iface_index . ipv6_addr . inet_proto . inet_service . mark",
            "received_flows_4": "iface_index . ipv4_addr . inet_proto . inet_service . mark",
            "received_flows_6": "iface_index . ipv6_addr . inet_proto . inet_service . mark",
        }.items()
    )
    refusals = ", ".join(f"{mark} : goto refusal" for mark in (*REFUSAL_MARKS, POLICY_MARK))
    log = f"""
    chain told {{
        type filter hook output priority {_EARLY}; policy accept;
        meta l4proto tcp accept
        oifname != "{JOB_LINK}*" accept
        ip saddr {PILOT_V4} udp sport 53 limit rate 500/second burst 500 packets log group {LOG_GROUP} snaplen 1500
        icmp type destination-unreachable limit rate 100/second burst 100 packets log group {LOG_GROUP} snaplen 100
        icmpv6 type destination-unreachable limit rate 100/second burst 100 packets log group {LOG_GROUP} snaplen 140
    }}
"""
    return f"""
table inet {TABLE} {{
    map sent_by {{ type iface_index : verdict; }}
    map received_by {{ type iface_index : verdict; }}
{sets}
    chain count_sent_flow {{
        meta l4proto != tcp meta l4proto != udp return
        meta nfproto ipv4 update @sent_flows_4 {{ iif . ip daddr . meta l4proto . th dport . meta mark counter }}
        meta nfproto ipv6 update @sent_flows_6 {{ iif . ip6 daddr . meta l4proto . th dport . meta mark counter }}
    }}
    chain count_received_flow {{
        meta l4proto != tcp meta l4proto != udp return
        tcp flags & (syn | ack | rst) == syn | ack update @connections {{ oif . meta mark counter }}
        meta nfproto ipv4 update @received_flows_4 {{ oif . ip saddr . meta l4proto . th sport . meta mark counter }}
        meta nfproto ipv6 update @received_flows_6 {{ oif . ip6 saddr . meta l4proto . th sport . meta mark counter }}
    }}
    chain count_sent {{
        update @sent_bytes {{ iif . meta mark counter }}
        jump count_sent_flow
        meta mark set 0
    }}
    chain count_received {{
        update @received_bytes {{ oif . meta mark counter }}
        jump count_received_flow
        meta mark set 0
    }}
    chain refuse {{
        meta mark set {POLICY_MARK} accept
    }}
    chain refusal {{
        iifname != "{JOB_LINK}*" return
        jump count_sent_flow
        meta mark {POLICY_MARK} reject with icmpx type admin-prohibited
    }}
    chain sent {{
        type filter hook prerouting priority {_EARLY}; policy accept;
        iif vmap @sent_by
        iifname "{JOB_LINK}*" drop
    }}
    chain received {{
        type filter hook postrouting priority {_EARLY}; policy accept;
        oif vmap @received_by
    }}
    chain refused {{
        type filter hook input priority filter - 10; policy accept;
        meta mark {TPROXY_MARK} accept
        meta mark vmap {{ {refusals} }}
    }}
    chain refused_onwards {{
        type filter hook forward priority filter - 10; policy accept;
        meta mark 0 accept
        meta mark vmap {{ {refusals} }}
    }}{log if logging else ""}
}}
"""  # noqa: S608


#: How nft(8) calls IP's versions.
_FAMILIES = {4: "ip", 6: "ip6"}

#: What stays inside, which no policy can deny, nor is it of any class.
_OWN = tuple(Destination(ip_network(text)) for text in (*OWN_V4, *OWN_V6))


def policy_rules(
    name: str,
    allowed: Sequence[Destination],
    denied: Sequence[Destination],
    classes: Sequence[Sequence[Destination]],
) -> str:
    """Makes the chains of one policy, or replaces them at once: `name`_sent, `name`_received and what they need.

    The first of the `classes` that covers a packet's destination counts it, as number 1 and on. Of a name nothing is
    allowed, denied or counted: names have been replaced by addresses before.
    """
    chains: dict[str, list[str]] = {}
    of_sent, of_received = ["goto count_sent_flow"], ["goto count_received_flow"]
    if classes:
        of_sent, of_received = (_class_chains(len(classes), way, chains) for way in ("sent", "received"))
    lists, onwards, refuse = [_OWN, *classes], f"goto {name}_classes", "goto refuse"
    chains[f"{name}_classes"] = _first_of(lists, of_sent, of_sent[0], "d")
    chains[f"{name}_received"] = ["meta mark set 0", *_first_of(lists, of_received, of_received[0], "s")]
    chains[f"{name}_sent"] = [onwards]
    if allowed or denied:
        otherwise = refuse if allowed else onwards
        chains[f"{name}_sent"] = _first_of([_OWN, denied, allowed], [of_sent[0], refuse, onwards], otherwise, "d")
    lines = [f"{verb} chain inet {TABLE} {chain}" for chain in chains for verb in ("add", "flush")]
    lines += [f"add rule inet {TABLE} {chain} {rule}" for chain, rules in chains.items() for rule in rules]
    return "\n".join(lines) + "\n"


def _class_chains(count: int, way: str, chains: dict[str, list[str]]) -> list[str]:
    """What leads to the counting of each class, number 0 being none; adds the `chains`, which policies share."""
    for number in range(1, count + 1):
        chains[f"class_{number}_{way}"] = [f"meta mark set {FIRST_CLASS_MARK + number} goto count_{way}"]
    return [f"goto count_{way}", *(f"goto class_{number}_{way}" for number in range(1, count + 1))]


def _first_of(lists: Sequence[Sequence[Destination]], verdicts: Sequence[str], otherwise: str, side: str) -> list[str]:
    """Rules by which the first of the lists that covers a packet decides, and `otherwise` where none does.

    Where addresses alone say so, that is one look-up; only what is left by it meets rules for each list.
    """
    decided = {version: _decided(spans(lists, version), [*verdicts, otherwise]) for version in _FAMILIES}
    tried = any(verdict is None for parts in decided.values() for _, _, verdict in parts)
    rules = []
    for version, parts in decided.items():
        known = [(first, last, verdict) for first, last, verdict in parts if verdict is not None]
        if len(parts) == len(known) == 1:
            rules += [f"meta nfproto ipv{version} {known[0][2]}"] if tried else []
        elif known:
            elements = ", ".join(f"{first}-{last} : {verdict}" for first, last, verdict in known)
            rules.append(f"{_FAMILIES[version]} {side}addr vmap {{ {elements} }}")
    if tried:
        for destinations, verdict in zip(lists, verdicts):
            rules += _rules(destinations, verdict, side)
    return [*rules, otherwise]


def _decided(found: Iterable[Span], verdicts: Sequence[str]) -> list[tuple[Address, Address, str | None]]:
    """Addresses and what is decided for them, None where rules have to be tried; the last verdict is for no list."""

    def verdict_of(span: Span) -> str | None:
        return None if span.depends else verdicts[-1 if span.number is None else span.number]

    parts = []
    for verdict, some in groupby(found, verdict_of):
        each = list(some)
        parts.append((each[0].first, each[-1].last, verdict))
    return parts


def remove_rules(names: Iterable[str]) -> str:
    """Removes the chains of policies that no link leads to any more."""
    parts = [f"{name}_{part}" for name in names for part in ("sent", "classes", "received")]
    flushed = [f"flush chain inet {TABLE} {part}" for part in parts]
    return "\n".join(flushed + [f"delete chain inet {TABLE} {part}" for part in parts]) + "\n"


def _rules(destinations: Sequence[Destination], target: str, side: str) -> list[str]:
    """One rule for all destinations of a kind (protocol, ports, IP version): `side` is "d" or "s"."""
    kinds: dict[tuple[str, tuple[int, int] | None, int], list[Network]] = {}
    for destination in destinations:
        network = destination.where
        if not isinstance(network, str):
            kinds.setdefault((destination.protocol, destination.ports, network.version), []).append(network)
    return [
        " ".join(filter(None, [_address_match(networks, side), _port_match(protocol, ports, side), target]))
        for (protocol, ports, _), networks in kinds.items()
    ]


def _address_match(networks: list[Network], side: str) -> str:
    family = _FAMILIES[networks[0].version]
    found = [str(network) for network in collapse_addresses(networks)]  # type: ignore[type-var]
    if found[0].endswith("/0"):
        return f"meta nfproto ipv{networks[0].version}"
    return f"{family} {side}addr {{ {', '.join(found)} }}"


def _port_match(protocol: str, ports: tuple[int, int] | None, side: str) -> str:
    if ports is None:
        return f"meta l4proto {protocol}" if protocol else ""
    first, last = ports
    which = f"{first}-{last}" if last > first else f"{first}"
    return f"{protocol} {side}port {which}" if protocol else f"meta l4proto {{ tcp, udp }} th {side}port {which}"
