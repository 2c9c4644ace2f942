"""The host's own network for jobs: forwarded by the kernel, in the host's name, to where they may go.

What is set (rules of nftables, and sysctls) stays in force when the broker is killed, so that jobs go on; the next
broker replaces the rules in one step. What the sysctls were before stands in a file until they are set back.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from htcondor_vpn.addresses import JOB_LINK, JOB_LINKS_V4, JOB_LINKS_V6, TUNNEL_LINK
from htcondor_vpn.errors import NamespacesUnavailable
from htcondor_vpn.gateway.kernel_nat import Pilots, own_name_servers, rules
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.linux.routes import UNICAST, route_type
from htcondor_vpn.settings import Settings
from htcondor_vpn.special_addresses import Address

_SYSCTLS = Path("/proc/sys/net")
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_JOBS = Pilots("jobs", JOB_LINK, (JOB_LINKS_V4, JOB_LINKS_V6), check_sources=True)

#: Somewhere outside (RFC 5737, RFC 3849): is there a route?
_OUTSIDE: dict[str, Address] = {"ipv4": IPv4Address("192.0.2.1"), "ipv6": IPv6Address("2001:db8::1")}

#: Of a job's link. What a path cannot carry is cut by its router, and told.
MTU = 1500

log = logging.getLogger(__name__)


class HostNetwork:
    """`open` it as root before jobs get a network, and `close` it when none has one any more."""

    def __init__(self, settings: Settings, folder: Path, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._settings, self._resolv_conf = settings, resolv_conf
        self._before = folder / "sysctls.json"
        self._nft = find_program("nft", "nftables")

    def open(self) -> None:
        """Has the kernel forward what jobs send; raises `NamespacesUnavailable`."""
        before = self._saved() or {name: path.read_text().strip() for name, path in _sysctls()}
        only_jobs = before.get(_FORWARDING[0]) == "0"  # a host that was no router does not become one
        tunnel = TUNNEL_LINK if self._settings.execution_point_tunnel else ""
        servers = own_name_servers(self._resolv_conf)
        jobs = replace(_JOBS, name_servers=servers, only_these=only_jobs, tunnel=tunnel)
        try:
            self._before.write_text(json.dumps(before))
            self._set_rules(jobs)
            for name, path in _sysctls():
                wanted = "1" if name in _FORWARDING else "2"  # a router's links learn routes only when told twice
                if name in _FORWARDING or path.read_text().strip() == "1":
                    path.write_text(wanted)
        except (ProgramFailed, OSError) as error:
            said = error.stderr.strip().partition("\n")[0] if isinstance(error, ProgramFailed) else str(error)
            cause = f"this host cannot be made to forward for jobs: {said}"
            raise NamespacesUnavailable(cause, "run it as root") from error

    def _set_rules(self, jobs: Pilots) -> None:
        """Replaces the rules in one step; raises `ProgramFailed`."""
        allow, deny = self._settings.execution_point_allow, self._settings.execution_point_deny
        most = self._settings.execution_point_job_connections
        if most:
            text = rules(replace(jobs, most_connections=most), allow, deny)
            try:
                run_program([self._nft, "-f", "-"], stdin=_removal() + text)
            except ProgramFailed as error:
                said = error.stderr.strip().partition("\n")[0]
                log.warning("jobs' connections are not limited: does the kernel lack nft_connlimit? %s", said)
            else:
                return
        run_program([self._nft, "-f", "-"], stdin=_removal() + rules(jobs, allow, deny))

    def close(self) -> None:
        """Takes everything back; raises `ProgramFailed` and OSError. May be repeated."""
        run_program([self._nft, "-f", "-"], stdin=_removal())
        for name, value in (self._saved() or {}).items():
            path = _SYSCTLS / name
            if path.exists():  # its link may be gone
                path.write_text(value)
        self._before.unlink(missing_ok=True)

    def _saved(self) -> dict[str, str] | None:
        try:
            saved: dict[str, str] = json.loads(self._before.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            log.error("%s cannot be read: what this host's sysctls were before is lost", self._before)
            return None
        return saved

    def families(self) -> frozenset[str]:
        """Those by which this host has a way out now."""
        return frozenset(name for name, address in _OUTSIDE.items() if route_type(address) == UNICAST)

    def loopback_name_servers(self) -> list[Address]:
        """The name servers of this host that only itself can ask; jobs get them on their own loopback."""
        found = []
        for words in map(str.split, self._resolv_conf.read_text().splitlines()):
            if len(words) > 1 and words[0] == "nameserver":
                address = ip_address(words[1].partition("%")[0])
                if address.is_loopback:
                    found.append(address)
        return found


def _removal() -> str:
    return f"table inet {_JOBS.table}\ndelete table inet {_JOBS.table}\n"


def _sysctls() -> Iterator[tuple[str, Path]]:
    """What is changed: forwarding, and that links go on to learn their IPv6 routes (accept_ra, ip-sysctl.rst)."""
    names = list(_FORWARDING)
    conf = _SYSCTLS / "ipv6/conf"
    if conf.exists():
        names += [f"ipv6/conf/{link}/accept_ra" for link in os.listdir(conf) if not link.startswith(JOB_LINK)]
    for name in names:
        path = _SYSCTLS / name
        if path.exists():
            yield name, path
