"""The demonstration: one real job, end to end, on a node that can reach nothing; every row is measured in the run."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from htcondor_vpn.testbed import condor_prefix, plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.condor_folder import Master
from htcondor_vpn.testbed.gateway import PORT as GATEWAY_PORT
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.pool import CentralManager
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import HTTP_PORT, WorldServices, url
from htcondor_vpn.testbed.site import Site

LINK_MBPS = 1000

#: How long the job may take besides its transfers.
_JOB_SECONDS = 90

_SLOT_ATTRIBUTES = {
    "VpnState": "", "VpnEngine": "", "VpnGateway": "", "VpnUpMbps": "Mbit/s", "VpnDownMbps": "Mbit/s",
    "VpnLatencyMs": "ms", "VpnBytesIn": "bytes", "VpnBytesOut": "bytes", "VpnSince": "s since 1970",
}  # fmt: skip

#: What the job's bytes in the history may be more than the server's: headers in segments that are full, ...
_HEADERS = 0.02

#: ... or, where the payload is small against what else was sent, an Ethernet, an IPv6 and a TCP header with timestamps
#: for each packet that was counted (acknowledgements of the other way's payload), and HTTP's headers and DNS.
_PACKET_HEADER_BYTES = 14 + 40 + 32
_BESIDES_BYTES = 8_000

#: A transfer shorter than this says nothing of a rate: the limit's burst and the connection's beginning are most of it.
_JUDGED_SECONDS = 0.5

#: What the node's link carries of payload beneath its own headers and TLS.
_LINK_PAYLOAD_MBPS = 0.94 * LINK_MBPS

_JOB = """\
#!/bin/sh
# Downloads from, and uploads to, a name that only the tunnel's resolver knows.
set -e
readlink /proc/self/ns/net
curl -sS -f -o /dev/null -w '%{{size_download}} %{{speed_download}}\\n' {download}
truncate -s {upload_bytes} payload
curl -sS -f -T payload -o /dev/null -w '%{{size_upload}} %{{speed_upload}}\\n' {upload}
rm payload
"""


def demonstrate(report: Report, download_bytes: int, upload_bytes: int, rate_mbps: float) -> None:
    """Runs it, in the sandbox; each row is in the report, and shown, as soon as it is measured.

    Raises OSError (TimeoutError among them), RuntimeError and `ProgramFailed` when it cannot go on.
    """
    with ExitStack() as exits:
        before = _interfaces()
        site = exits.enter_context(Site(LINK_MBPS))
        report.say("A site: a node whose only link leads to a DMZ, and the world beyond it")
        services = exits.enter_context(WorldServices(site))
        _node_is_cut_off(report, site)

        report.say("A gateway in the DMZ, as an ordinary user; a pool outside")
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        prefix = condor_prefix.prefix()
        pool = exits.enter_context(CentralManager(site.world, prefix, site.folder / "pool", str(plan.WORLD["cm"].v4)))
        report.say(f"HTCondor {condor_prefix.version(prefix)}")
        resting = set(site.processes())
        files = _temporary_files()
        ends = [(address, GATEWAY_PORT) for address in plan.DMZ_INSIDE]
        capture = exits.enter_context(Capture(site, allowed=ends))

        report.say("A pilot on the node: htcondor-vpn run -- condor_master")
        pilot = _start_pilot(report, site, gateway, pool, exits)
        _slot(report, pool)

        report.say(f"A job that asks for {rate_mbps:g} Mbit/s")
        cluster = pool.submit(
            {"executable": "job.sh", "+VpnBandwidthMbps": f"{rate_mbps:g}"},
            {"job.sh": _JOB.format(download=url(f"/bytes/{download_bytes}"), upload=url("/upload"),
                                   upload_bytes=upload_bytes)},
        )  # fmt: skip
        transfer_seconds = (download_bytes + upload_bytes) * 8 / (rate_mbps * 1e6)
        history = pool.wait_for_history(cluster, _JOB_SECONDS + 1.5 * transfer_seconds)
        _job(report, site, services, pool, cluster, history, (download_bytes, upload_bytes), rate_mbps)

        report.say("The pilot ends")
        pilot.stop()
        capture.stop()
        report.add("packets on the node's link neither to nor from the gateway", not capture.foreign,
                   len(capture.foreign), f"of {capture.total:,}", "0")  # fmt: skip
        left = set(site.processes()) - resting
        report.add("processes left behind by the pilot", not left, len(left), "", "0")
        left_files = _temporary_files() - files
        report.add("files left behind by the pilot", not left_files, len(left_files), "", "0")
        links = _node_interfaces(site)
        report.add("interfaces and namespaces left on the node", links == {"lo", "eth0"}, len(links - {"lo", "eth0"}),
                   "", "0")  # fmt: skip
        exits.close()
        gone = _interfaces() - before
        report.add("interfaces left behind by the site", not gone, len(gone), "", "0")


def _node_is_cut_off(report: Report, site: Site) -> None:
    for name, target in (("by address", str(plan.WORLD["http"].v4)), ("by name", f"http.{plan.ZONE}")):
        done = site.node.run(["curl", "-sS", "-m", "3", f"http://{target}:{HTTP_PORT}/peer"])
        said = done.stderr.strip().removeprefix(f"curl: ({done.returncode}) ") if done.returncode else "it answered"
        report.add(f"the node cannot reach the world {name}", done.returncode != 0, said, "", "an error")


def _start_pilot(report: Report, site: Site, gateway: SiteGateway, pool: CentralManager, exits: ExitStack) -> Master:
    config = pool.pilot(site.folder / "pilot", name="demo")
    config.use_vpn()
    log = config.folder / "log" / "master.out"
    log.touch()
    begin = time.monotonic()
    master = Master(site.node, config, launcher=gateway.run_argv([], "-v"))
    exits.callback(master.stop)
    wait_for_log(log, b"the tunnel is up")
    report.add("time to the tunnel, without root", True, time.monotonic() - begin, "s", MEASURED)
    pool.wait_for_startd("demo", 60, 'VpnState == "up"')
    report.add("time to the startd in the pool's collector", True, time.monotonic() - begin, "s", MEASURED)
    return master


def _slot(report: Report, pool: CentralManager) -> None:
    ad = pool.wait_for_startd("demo", 30, "VpnUpMbps isnt undefined")
    for name, unit in _SLOT_ATTRIBUTES.items():
        ok, wanted = (ad[name] == "up", '"up"') if name == "VpnState" else (name in ad, MEASURED)
        report.add(f"slot attribute {name}", ok, ad.get(name), unit, wanted)


def _job(
    report: Report,
    site: Site,
    services: WorldServices,
    pool: CentralManager,
    cluster: int,
    history: Any,
    payload_bytes: tuple[int, int],
    rate_mbps: float,
) -> None:
    output = pool.file(cluster, "out.0").decode()
    error = pool.file(cluster, "err.0").decode().strip()
    code = history.get("ExitCode")
    report.add("the job's exit code", code == 0, code if code is not None else f"none {error}", error, "0")
    match = re.fullmatch(r"(net:\[\d+\])\n(\d+) (\d+)\n(\d+) (\d+)\n", output)
    if not match:
        report.add("the job's own word", False, output, "", "its namespace, sizes and speeds")
        return
    own = match[1] not in {os.readlink("/proc/self/ns/net"), *_namespaces_of_hosts(site)}
    report.add("the job's network is its own", own, match[1], "", "a namespace of no host")
    counted = {"GET": 0, "PUT": 0}
    for entry in services.http_ledger.entries():
        if entry["method"] in counted:
            counted[entry["method"]] += entry["bytes_out" if entry["method"] == "GET" else "bytes_in"]
    sizes = {"downloaded": (int(match[2]), payload_bytes[0]), "uploaded": (int(match[4]), payload_bytes[1])}
    for name, (got, wanted) in sizes.items():
        report.add(f"{name} by the job from http.{plan.ZONE}", got == wanted, got, "bytes", f"{wanted:,} bytes")
    for way, method in (("In", "GET"), ("Out", "PUT")):
        _counted(report, history, way, counted[method])
    for name, speed, size in (("down", match[3], payload_bytes[0]), ("up", match[5], payload_bytes[1])):
        _rate(report, name, rate_mbps, size, int(speed))


def _rate(report: Report, way: str, asked_mbps: float, size_bytes: int, bytes_per_second: float) -> None:
    """Compares the rate of a transfer of `size_bytes` with what the job asked for."""
    mbps = bytes_per_second * 8 / 1e6
    ok, wanted = True, "not judged: so few bytes are over too soon"
    if size_bytes * 8 >= _JUDGED_SECONDS * asked_mbps * 1e6:
        ok = 0.85 * min(asked_mbps, _LINK_PAYLOAD_MBPS) <= mbps <= 1.02 * asked_mbps
        wanted = f"{asked_mbps:g} less headers"
    report.add(f"rate {way}, of {asked_mbps:g} Mbit/s asked for", ok, mbps, "Mbit/s", wanted)


def _counted(report: Report, history: Any, way: str, served: int) -> None:
    """Compares a direction's bytes in the history with the payload that the server counted."""
    value, packets = history.get(f"ChirpNetworkBytes{way}"), history.get(f"ChirpNetworkPackets{way}")
    wanted, allowed = f"{served:,} counted by the server, and up to 2 % of headers", _HEADERS * served
    if isinstance(packets, int) and packets * _PACKET_HEADER_BYTES + _BESIDES_BYTES > allowed:
        allowed = packets * _PACKET_HEADER_BYTES + _BESIDES_BYTES
        wanted = f"{served:,} counted by the server, and up to {allowed:,} of headers ({packets:,} packets), HTTP, DNS"
    close = isinstance(value, int) and 0 <= value - served <= allowed
    report.add(f"condor_history: ChirpNetworkBytes{way}", close, value, "bytes", wanted)


def _namespaces_of_hosts(site: Site) -> set[str]:
    return {host.run(["readlink", "/proc/self/ns/net"]).stdout.strip() for host in (site.node, site.dmz, site.world)}


def _interfaces() -> set[str]:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def _node_interfaces(site: Site) -> set[str]:
    lines = site.node.run(["cat", "/proc/self/net/dev"]).stdout.splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def _temporary_files() -> set[Path]:
    return set(Path(os.environ.get("TMPDIR", "/tmp")).iterdir())  # noqa: S108
