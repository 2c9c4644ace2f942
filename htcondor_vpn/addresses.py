"""The address plan inside a pilot's network namespace.

Everything lies in 198.18.0.0/15, which RFC 2544 reserves for benchmarks and which therefore hides no real host from
the jobs, and in one unique local IPv6 prefix (RFC 4193). The namespace is closed: the same plan serves every pilot.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

INNER_V4 = IPv4Network("198.18.0.0/15")
INNER_V6 = IPv6Network("fd68:7463:6f6e::/48")

#: The pilot's own address, and that of the resolver inside (UDP and TCP port 53).
PILOT_V4 = IPv4Address("198.18.0.1")
PILOT_V6 = IPv6Address("fd68:7463:6f6e::1")

#: Where the engine's transparent listening sockets are bound inside.
TPROXY_PORT = 15001

#: Where the broker listens for the job hooks, on the loopback inside; hook.bash knows it too.
HOOK_PORT = 15002

#: The mark of packets that were handed to the engine.
TPROXY_MARK = 1

#: The marks of packets that are answered by a refusal, as what was asked to carry them decided (`Refusal`), and of
#: those that a job's policy forbids.
REFUSAL_MARKS = (2, 3, 4, 5)
POLICY_MARK = 6

#: The queue (NFQUEUE) in which SYNs wait for the far side's answer.
HOLD_QUEUE = 1

#: The queue in which ICMP echo requests wait for it.
ECHO_QUEUE = 2

#: What stays inside, as networks: the pilot's own addresses and its jobs', and what no gateway could carry.
OWN_V4 = ("127.0.0.0/8", str(INNER_V4))
OWN_V6 = ("::1", "fe80::/10", "ff00::/8", str(INNER_V6))

#: A job's link has a /31 (RFC 3021) and a /127 (RFC 6164); the broker's side is the even address.
JOB_LINKS_V4 = IPv4Network("198.19.0.0/16")
JOB_LINKS_V6 = IPv6Network("fd68:7463:6f6e:1::/64")
MAX_JOBS = JOB_LINKS_V4.num_addresses // 2

#: The pilots of a WireGuard gateway, in its own namespace: number n has the address n of each.
WIREGUARD_V4 = IPv4Network("198.18.128.0/17")
WIREGUARD_V6 = IPv6Network("fd68:7463:6f6e:2::/64")

#: The pilots of an ocserv gateway; ocserv itself has the first address of each.
OCSERV_V4 = IPv4Network("198.18.64.0/18")
OCSERV_V6 = IPv6Network("fd68:7463:6f6e:3::/64")

#: Interface names: the broker's end of a job's veth, which the number of the job network follows, and the job's end.
JOB_LINK = "htvj"
INSIDE_JOB = "eth0"

#: The link between an execution point's host and the tunnel of one account there: the host's end, and the tunnel's.
#: Its ends have these addresses (/31, /127), and what comes in by it is from the tunnel's jobs, which have the numbers
#: from FIRST_TUNNELLED on, or from the host itself.
TUNNEL_LINK, POINT_LINK = "htvtun", "htvpoint"
TUNNEL_LINK_V4 = IPv4Address("198.18.0.2"), IPv4Address("198.18.0.3")
TUNNEL_LINK_V6 = IPv6Address("fd68:7463:6f6e::2"), IPv6Address("fd68:7463:6f6e::3")
FIRST_TUNNELLED = MAX_JOBS // 2
TUNNELLED_V4, TUNNELLED_V6 = IPv4Network("198.19.128.0/17"), IPv6Network("fd68:7463:6f6e:1::8000/113")

#: The links (ifb) through which all jobs' traffic passes to be shaped: what they send, and what they receive.
SHAPER_NAMES = ("htvup", "htvdown")

#: Job network n has the link of index FIRST_INDEX + 2n in the inner namespace, so that a link's index is known before
#: it is made, and whose link it is by its index.
FIRST_INDEX = 1 << 16
SHAPER_INDICES = (FIRST_INDEX - 2, FIRST_INDEX - 1)
TUNNEL_LINK_INDEX, POINT_LINK_INDEX = FIRST_INDEX - 3, FIRST_INDEX - 4
_LOOPBACK_INDEX = 1


#: Locally administered, as those of virtual links are.
_HARDWARE = b"\x02\x68\x74"


class JobLink(NamedTuple):
    """The two ends of one job's link: IPv4 (/31), IPv6 (/127), and hardware addresses that end in the job's number."""

    broker_v4: IPv4Address
    job_v4: IPv4Address
    broker_v6: IPv6Address
    job_v6: IPv6Address
    broker_hardware: bytes
    job_hardware: bytes


def job_link(number: int) -> JobLink:
    """Returns the addresses of job network `number`, 0 to `MAX_JOBS` - 1; raises IndexError outside of that."""
    if not 0 <= number < MAX_JOBS:
        raise IndexError(f"job network {number} is not in 0..{MAX_JOBS - 1}")
    v4, v6 = JOB_LINKS_V4[2 * number], JOB_LINKS_V6[2 * number]
    hardware = (_HARDWARE + bytes([end]) + number.to_bytes(2, "big") for end in (0, 1))
    return JobLink(v4, v4 + 1, v6, v6 + 1, *hardware)


def link_of(source: str) -> int:
    """The index of the link of the job that has the address `source`; of the loopback if none has."""
    address = ip_address(source)
    jobs = JOB_LINKS_V4 if address.version == 4 else JOB_LINKS_V6
    offset = int(address) - int(jobs.network_address)
    return FIRST_INDEX + (offset & ~1) if 0 <= offset < 2 * MAX_JOBS else _LOOPBACK_INDEX


def may_send(source: str, interface: int) -> bool:
    """Whether `source` may send by the link of that index: by a job's link only the job whose it is.

    A forged one would have another be sent the answers.
    """
    if interface < FIRST_INDEX:
        return True  # the pilot's own
    link = job_link((interface - FIRST_INDEX) // 2)
    return ip_address(source) in (link.job_v4, link.job_v6)
