"""The rules for the jobs' links, as texts for nft(8).

One table serves all jobs. What counts is sets that get an element, with a counter, by the first packet of each flow (to
or from an address, protocol and port of a job's). That packet meets what the job's policy says, and the others, as far
as the kernel counts by looking up (Linux 5.7), nothing but the look-up of their flow:

    prerouting ── sent ─┬─ a known flow: counted
                        └─ sent_by: link → the policy's chain ─┬─ count_sent
                                                               └─ refuse: marked, and told at its end by `refused`
    postrouting ─ received ─┬─ a known flow: counted
                            └─ received_by: link → the policy's chain ── count_received

A job may have so many flows told apart at once, and so many new ones a second; what comes beyond is counted by its
class, and in sum (`unlisted`). So no job can fill the sets, in which the others' flows need room, too.

Verdict maps lead from a job's link to the chain of what that job may reach: a job costs two elements and no rule, no
packet meets a rule of another policy, and jobs for whom the same was decided share a chain. What comes by a link that
the map does not know is dropped. So what a flow may is decided once: if a policy's rules change, its flows have to be
taken out. Older kernels have every packet meet them.

One more map leads from the address at the far side to its class (`spans`), whose number becomes the packet's mark; only
where a policy has protocols or ports, and for such addresses, rules are tried one by one. The class of a flow is kept
with it (`flow_classes`). What is no flow, or finds no room, is counted by its class alone.

Needs what Linux 4.18 has: verdict maps, dynamic sets with counters (`update`), interval sets and maps, concatenated
keys, several hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_network
from itertools import groupby

from htcondor_vpn.addresses import JOB_LINK, MAX_JOBS, OWN_V4, OWN_V6, PILOT_V4, POLICY_MARK, REFUSAL_MARKS, TPROXY_MARK
from htcondor_vpn.jobnet.counting.spans import Span, spans
from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.special_addresses import Address, Network

TABLE = "htcondor_vpn_jobs"

#: A set by whose name a broker knows a table that it can go on with; another name belongs to what is made differently.
LAYOUT = "layout_4"

#: Class number n, from 1 on, has the mark FIRST_CLASS_MARK + n while a packet is counted; what is in none has no mark
#: (0). Marks between say by what a packet was refused.
FIRST_CLASS_MARK = 16

#: Before what catches the packets and holds connects: what a policy forbids is nobody else's business.
_EARLY = "raw - 10"

#: How many flows (link, address, protocol, port) are told apart at a time; what comes beyond is counted by class only.
MOST_FLOWS = 1 << 16

#: How many flows a job may have told apart at once, and how many new ones a second after that, in each direction.
FLOWS_AT_ONCE, FLOWS_PER_SECOND = 1000, 100

#: How many pairs of job and class.
_MOST_CLASSES = 1 << 16

#: The group by which the names that jobs are told, and refusals of datagrams, come to the broker.
LOG_GROUP = 4

#: Sets of what each job may have so many of.
BUDGETS = tuple(f"{what}_budget" for what in ("sent", "received", "refused", "names", "undelivered"))

#: How nft(8) calls IP's versions.
_FAMILIES = {4: "ip", 6: "ip6"}

#: A TCP segment that says that the far side takes a connection: `tcp flags & (syn | ack | rst) == syn | ack`, for what
#: is TCP; nft would have each rule ask for that again.
_BEGUN = "@th,104,8 & 0x16 == 0x12"

def table_rules(*, logging: bool, known_flows: bool, bounded: bool = True) -> str:
    """The table, without any policy's chain.

    `logging` needs the kernel's modules nft_log and nft_limit, `bounded` the latter: without it one job can fill the
    sets of flows. `known_flows` needs that a look-up counts (Linux 5.7; see `counts_look_ups`).
    """
    counter, size = "counter; " if known_flows else "", f"size {MOST_FLOWS}; flags dynamic;"
    flows = {f"{way}_flows_{version}": _flow_key(version) for way in ("sent", "received") for version in _FAMILIES}
    marked = {f"{what}_{version}": f"{_flow_key(version)} . mark" for what in ("refused_flows", "flow_classes")
              for version in _FAMILIES}  # fmt: skip
    by_class = dict.fromkeys(("sent_bytes", "received_bytes", "connections"), "iface_index . mark")
    sets = [f"set {name} {{ type {key}; {size} {counter}}}" for name, key in flows.items()]
    sets += [f"set {name} {{ type {key}; {size} }}" for name, key in marked.items()]
    sets += [f"set {name} {{ type {key}; size {_MOST_CLASSES}; flags dynamic; }}" for name, key in by_class.items()]
    by_link = ("sent_unlisted", "received_unlisted", *BUDGETS)
    sets += [f"set {name} {{ type iface_index; size {MAX_JOBS}; flags dynamic; }}" for name in by_link]
    refusals = ", ".join(f"{mark} : goto refusal" for mark in (*REFUSAL_MARKS, POLICY_MARK))
    sent = [f"{_ends(version, 'sent')} @sent_flows_{version} accept" for version in _FAMILIES]
    received = [f"{_ends(version, 'received')} @received_flows_{version} accept" for version in _FAMILIES]
    if not known_flows:
        sent = received = []
    log = f"""
        ip saddr {PILOT_V4} udp sport 53 {_shown("names", 100, 500)} snaplen 1500
        icmp type destination-unreachable {_shown("undelivered", 50, 200)} snaplen 100
        icmpv6 type destination-unreachable {_shown("undelivered", 50, 200)} snaplen 140"""
    return f"""
table inet {TABLE} {{
    set {LAYOUT} {{ type mark; }}
    map sent_by {{ type iface_index : verdict; }}
    map received_by {{ type iface_index : verdict; }}
    {_lines(sets, 4)}
    chain count_sent_bytes {{
        update @sent_bytes {{ iif . meta mark counter }} meta mark set 0
    }}
    chain count_received_bytes {{
        update @received_bytes {{ oif . meta mark counter }} meta mark set 0
    }}
    chain unlisted_sent {{
        update @sent_unlisted {{ iif counter }} goto count_sent_bytes
    }}
    chain unlisted_received {{
        update @received_unlisted {{ oif counter }} goto count_received_bytes
    }}
    chain count_sent {{
        {_counting("sent", known_flows=known_flows, bounded=bounded)}
    }}
    chain count_received {{
        meta l4proto tcp {_BEGUN} update @connections {{ oif . meta mark counter }}
        {_counting("received", known_flows=known_flows, bounded=bounded)}
    }}
    chain refuse {{
        meta mark set {POLICY_MARK} accept
    }}
    chain count_refused {{
        meta l4proto != tcp meta l4proto != udp return
        {_beyond("refused", "return") if bounded else ""}
        {_lines([f"update @refused_flows_{n} {{ {_ends(n, 'sent')} . meta mark counter }}" for n in _FAMILIES])}
    }}
    chain refusal {{
        iifname != "{JOB_LINK}*" return
        jump count_refused
        meta mark {POLICY_MARK} reject with icmpx type admin-prohibited
    }}
    chain sent {{
        type filter hook prerouting priority {_EARLY}; policy accept;
        {_lines(sent)}
        iif vmap @sent_by
        iifname "{JOB_LINK}*" drop
    }}
    chain decided_received {{
        oif vmap @received_by
    }}
    chain other_received {{
        oifname != "{JOB_LINK}*" accept{log if logging else ""}
        goto decided_received
    }}
    chain received {{
        type filter hook postrouting priority {_EARLY}; policy accept;
        meta l4proto != tcp goto other_received
        {_BEGUN} goto decided_received
        {_lines(received)}
        goto decided_received
    }}
    chain refused {{
        type filter hook input priority filter - 10; policy accept;
        meta mark & {0xFFFFFFFF ^ TPROXY_MARK:#x} == 0 accept
        meta mark vmap {{ {refusals} }}
    }}
    chain refused_onwards {{
        type filter hook forward priority filter - 10; policy accept;
        meta mark 0 accept
        meta mark vmap {{ {refusals} }}
    }}
}}
"""  # noqa: S608


def counts_look_ups(listed: str) -> bool:
    """Whether a set's elements count whenever they are looked up, by how nft(8) lists it: older kernels drop that."""
    return "counter" in listed.partition("elements")[0]


def _flow_key(version: int) -> str:
    return f"iface_index . ipv{version}_addr . inet_proto . inet_service"


def _ends(version: int, way: str) -> str:
    """The parts of a packet that are the key of its flow."""
    link, side = ("iif", "d") if way == "sent" else ("oif", "s")
    protocol = "ip protocol" if version == 4 else "meta l4proto"  # the former is read faster
    return f"{link} . {_FAMILIES[version]} {side}addr . {protocol} . th {side}port"


def _counting(way: str, *, known_flows: bool, bounded: bool) -> str:
    """The rules that count a packet of the class that is its mark: in its flow, or else, for want of room, by class.

    A flow and its class are kept together or not at all, by one rule: a flow without its class would be of none.
    """
    rules = [f"meta l4proto != tcp meta l4proto != udp goto count_{way}_bytes"]
    for version in _FAMILIES:  # of a known flow comes what begins a connection, or every packet
        key, flows = _ends(version, way), f"@{way}_flows_{version}"
        counted = "" if known_flows else f"update {flows} {{ {key} counter }} "
        rules.append(f"{key} {flows} {counted}meta mark set 0 accept")
    if bounded:
        rules.append(_beyond(way, f"goto unlisted_{way}"))
    for version in _FAMILIES:
        key = _ends(version, way)
        flow = f"update @{way}_flows_{version} {{ {key} counter }}"
        rules.append(f"meta mark 0 {flow} accept")
        kept = f"update @flow_classes_{version} {{ {key} . meta mark }}"
        rules.append(f"meta mark != 0 {kept} {flow} meta mark set 0 accept")
    return _lines([*rules, f"goto unlisted_{way}"])


def _beyond(way: str, verdict: str) -> str:
    """A rule for what would be one more flow of a job that has had too many of late."""
    link = "oif" if way == "received" else "iif"
    rate = f"limit rate over {FLOWS_PER_SECOND}/second burst {FLOWS_AT_ONCE} packets"
    return f"update @{way}_budget {{ {link} {rate} }} {verdict}"


def _shown(what: str, of_each: int, of_all: int) -> str:
    """Has the broker see packets to jobs, so many a second: those to one job do not hide those to another."""
    each = f"update @{what}_budget {{ oif limit rate {of_each}/second burst {2 * of_each} packets }}"
    return f"{each} limit rate {of_all}/second burst {2 * of_all} packets log group {LOG_GROUP}"


def _lines(rules: Sequence[str], indent: int = 8) -> str:
    return ("\n" + " " * indent).join(rules)


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
