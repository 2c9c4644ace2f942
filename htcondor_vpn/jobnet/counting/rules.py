"""The rules for the jobs' links, as texts for nft(8).

One table serves all jobs. A verdict map leads from a job's link to the chain of what that job may reach, so that a job
costs two elements and no rule; jobs for whom the same was decided share a chain. It sets a packet's mark to the number
of its destination's class. What counts is sets that get an element by the first packet of each key, with a counter:

    prerouting ── sent ── sent_by: link → the policy's chain ─┬─ count_sent
                                                              └─ refuse: marked, and told at its end by `refused`
    postrouting ─ received ─ received_by: link → the policy's chain ── count_received

What comes by a link that the map does not know is dropped. Needs what Linux 4.18 has: verdict maps, dynamic sets with
counters (`update`), interval sets, concatenated keys, several hooks; of newer things, none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from htcondor_vpn.addresses import JOB_LINK, OWN_V4, OWN_V6, PILOT_V4, POLICY_MARK, REFUSAL_MARKS
from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.special_addresses import Network

TABLE = "htcondor_vpn_jobs"

#: Class number n has the mark FIRST_CLASS_MARK + n while a packet is counted; number 0 is what is in none. Marks below
#: it say by what a packet was refused.
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
    marks = ", ".join(map(str, (*REFUSAL_MARKS, POLICY_MARK)))
    refused = f"""
        iifname != "{JOB_LINK}*" return
        meta mark != {{ {marks} }} return
        jump count_sent_flow
        meta mark {POLICY_MARK} reject with icmpx type admin-prohibited"""
    uncounted = f"meta mark set {FIRST_CLASS_MARK} goto count"
    log = f"""
    chain told {{
        type filter hook output priority {_EARLY}; policy accept;
        oifname != "{JOB_LINK}*" return
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
        meta l4proto != {{ tcp, udp }} return
        meta nfproto ipv4 update @sent_flows_4 {{ iif . ip daddr . meta l4proto . th dport . meta mark counter }}
        meta nfproto ipv6 update @sent_flows_6 {{ iif . ip6 daddr . meta l4proto . th dport . meta mark counter }}
    }}
    chain count_received_flow {{
        meta l4proto != {{ tcp, udp }} return
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
        tcp flags & (syn | ack | rst) == syn | ack update @connections {{ oif . meta mark counter }}
        jump count_received_flow
        meta mark set 0
    }}
    chain refuse {{
        meta mark set {POLICY_MARK} accept
    }}
    chain sent {{
        type filter hook prerouting priority {_EARLY}; policy accept;
        iifname != "{JOB_LINK}*" return
        ip daddr {{ {", ".join(OWN_V4)} }} {uncounted}_sent
        ip6 daddr {{ {", ".join(OWN_V6)} }} {uncounted}_sent
        iif vmap @sent_by
        drop
    }}
    chain received {{
        type filter hook postrouting priority {_EARLY}; policy accept;
        oifname != "{JOB_LINK}*" return
        ip saddr {{ {", ".join(OWN_V4)} }} {uncounted}_received
        ip6 saddr {{ {", ".join(OWN_V6)} }} {uncounted}_received
        oif vmap @received_by
        {uncounted}_received
    }}
    chain refused {{
        type filter hook input priority filter - 10; policy accept;{refused}
    }}
    chain refused_onwards {{
        type filter hook forward priority filter - 10; policy accept;{refused}
    }}{log if logging else ""}
}}
"""  # noqa: S608


#: For what is in no class.
_EVERYWHERE = (Destination(IPv4Network("0.0.0.0/0")), Destination(IPv6Network("::/0")))


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
    chains: dict[str, list[str]] = {f"{name}_{part}": [] for part in ("classes", "sent", "received")}
    for number, destinations in (*enumerate(classes, 1), (0, _EVERYWHERE)):
        counted = f"meta mark set {FIRST_CLASS_MARK + number} goto count"
        chains[f"{name}_classes"] += _rules(destinations, f"{counted}_sent", "d")
        chains[f"{name}_received"] += _rules(destinations, f"{counted}_received", "s")
    chains[f"{name}_sent"] += _rules(denied, "goto refuse", "d")
    classes_of = f"goto {name}_classes"
    chains[f"{name}_sent"] += _rules(allowed, classes_of, "d") + ["goto refuse"] if allowed else [classes_of]
    lines = []
    for chain, rules in chains.items():
        lines += [f"add chain inet {TABLE} {chain}", f"flush chain inet {TABLE} {chain}"]
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


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
    family = "ip" if networks[0].version == 4 else "ip6"
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
