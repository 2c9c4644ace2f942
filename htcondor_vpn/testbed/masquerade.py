"""What a VPN server of root's needs of its host's kernel: it forwards clients' packets in its own name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.host import Host

_SETTINGS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


@contextmanager
def masquerading(host: Host, table: str, link: str, v4: str, v6: str) -> Iterator[None]:
    """Within, `host` passes on what comes from these networks by links like `link`, and the answers, and nothing else.

    `table` is of nftables, for both families. Outside, the kernel looks up and tracks no packet for it.
    """
    rules = f"""
        table inet {table} {{
            chain out {{
                type nat hook postrouting priority srcnat;
                ip saddr {v4} masquerade
                ip6 saddr {v6} masquerade
            }}
            chain pass {{
                type filter hook forward priority filter; policy drop;
                iifname "{link}" accept
                oifname "{link}" accept
            }}
        }}
    """
    _nft(host, rules)
    try:
        _forward(host, _SETTINGS, 1)
        yield
    finally:
        _forward(host, _SETTINGS, 0)
        _nft(host, f"delete table inet {table}")


def _nft(host: Host, rules: str) -> None:
    host.run([find_program("nft", "nftables"), "-f", "-"], as_root=True, stdin=rules, check=True)


def _forward(host: Host, settings: Sequence[str], value: int) -> None:
    values = [f"{name}={value}" for name in settings]
    host.run([find_program("sysctl", "procps"), "-qw", *values], as_root=True, check=True)
