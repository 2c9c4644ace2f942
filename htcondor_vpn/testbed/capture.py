"""Capturing on the node's cable, from a place that the node cannot see: which packets had no business there.

Kept is what is neither to nor from an allowed endpoint. What the link itself needs (ARP, IPv6 neighbour and router
discovery, multicast listener reports) is counted apart.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple, Union

from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.testbed.links import NODE_END
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.site import Site

#: An address, and one port of it: of TCP, or of UDP if it is written `51820/udp`; None is all that it sends and gets.
Endpoint = tuple[Union[IPv4Address, IPv6Address, str], Union[int, str, None]]

_ETHERTYPE_IPV4, _ETHERTYPE_ARP, _ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
_NEXT_HOP_BY_HOP, _NEXT_ICMPV6 = 0, 58
#: MLD (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861).
_ICMPV6_LINK_CONTROL = {130, 131, 132, 143, *range(133, 138)}

_STOP_SECONDS = 10.0


class Packet(NamedTuple):
    """A captured packet: `time` in seconds since 1970, `frame` its first bytes from the Ethernet header on."""

    time: float
    frame: bytes

    @property
    def ethertype(self) -> int:
        return int.from_bytes(self.frame[12:14], "big")

    def is_link_control(self) -> bool:
        """Tells whether the link itself needs it, so that it can never leave the link."""
        if self.ethertype == _ETHERTYPE_ARP:
            return True
        if self.ethertype != _ETHERTYPE_IPV6 or len(self.frame) < 55:
            return False
        kind, start = self.frame[20], 54
        if kind == _NEXT_HOP_BY_HOP:  # MLD carries a router alert there
            kind, start = self.frame[54], 54 + 8 * (self.frame[55] + 1)
        return kind == _NEXT_ICMPV6 and len(self.frame) > start and self.frame[start] in _ICMPV6_LINK_CONTROL

    def __str__(self) -> str:
        if self.ethertype == _ETHERTYPE_IPV4:
            source, target = IPv4Address(self.frame[26:30]), IPv4Address(self.frame[30:34])
            return f"IPv4 {source} > {target} protocol {self.frame[23]}"
        if self.ethertype == _ETHERTYPE_IPV6:
            return f"IPv6 {IPv6Address(self.frame[22:38])} > {IPv6Address(self.frame[38:54])} next {self.frame[20]}"
        return f"ethertype {self.ethertype:#06x}"


def read_pcap(content: bytes) -> Iterator[Packet]:
    """Yields the packets of a pcap file with microsecond times as `sniffer` writes it.

    Source of the format: draft-ietf-opsawg-pcap.
    """
    if len(content) < 24 or struct.unpack_from("=I", content)[0] != 0xA1B2C3D4:
        raise ValueError("not a pcap file of this machine")
    offset = 24
    while offset + 16 <= len(content):
        seconds, micros, length, _ = struct.unpack_from("=IIII", content, offset)
        offset += 16
        yield Packet(seconds + micros / 1e6, content[offset : offset + length])
        offset += length


class Capture:
    """Captures from `with` on until its end, or until `stop`; then the results are there.

    `allowed` is what the node may talk to: the gateway's endpoints. `foreign` are the packets neither to nor from
    those, `link_control` those that the link itself needs, `total` how many passed the cable in all; `pcap` the file.
    """

    def __init__(self, site: Site, allowed: Iterable[Endpoint], pcap: Path | None = None) -> None:
        self._line = site.link.line
        self._program = _compiled(_foreign_to(allowed))
        self.pcap = pcap or site.folder / "capture.pcap"
        self.foreign: list[Packet] = []
        self.link_control: list[Packet] = []
        self.total = 0
        self._sniffer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Capture:
        self._log = self.pcap.with_suffix(".log")
        self._log.write_bytes(b"")
        argv = [sys.executable, "-m", "htcondor_vpn.testbed.sniffer", NODE_END, str(self.pcap)]
        self._sniffer = self._line.start(argv, as_root=True, log=self._log, stdin=subprocess.PIPE)
        assert self._sniffer.stdin is not None
        self._sniffer.stdin.write(f"{self._program}\n".encode())
        self._sniffer.stdin.flush()
        wait_for_log(self._log, rb"^listening$", self._sniffer)
        self._before = self._passed()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the capture with everything in it that passed before. A second call does nothing.

        Raises `ProgramFailed` when packets were lost to it, since a count of nothing would then mean nothing.
        """
        if self._sniffer is None:
            return
        process, self._sniffer = self._sniffer, None
        self.total = self._passed() - self._before
        assert process.stdin is not None
        process.stdin.close()
        try:
            code = process.wait(_STOP_SECONDS)
        finally:
            process.kill()
            process.wait(_STOP_SECONDS)
        counts = re.search(r"^(\d+) (\d+)$", self._log.read_text(), re.MULTILINE)
        packets = list(read_pcap(self.pcap.read_bytes()))
        if code != 0 or counts is None or int(counts[1]) != len(packets):
            said = f"{len(packets)} packets are in {self.pcap}: {self._log.read_text()}"
            raise ProgramFailed(["sniffer"], code, said)
        self.link_control = [packet for packet in packets if packet.is_link_control()]
        self.foreign = [packet for packet in packets if not packet.is_link_control()]

    def _passed(self) -> int:
        """How many packets the cable has carried, by its own counters."""
        show = [find_program("ip", "iproute2"), "-json", "-stats", "link", "show", NODE_END]
        stats = json.loads(self._line.run(show, as_root=True, check=True).stdout)[0]["stats64"]
        return int(stats["rx"]["packets"]) + int(stats["tx"]["packets"])


def _foreign_to(allowed: Iterable[Endpoint]) -> str:
    """Returns a filter (pcap-filter(7)) for what is neither to nor from the allowed endpoints."""
    parts = []
    for address, port in allowed:
        if port is None:
            parts.append(f"host {address}")
            continue
        number, _, protocol = str(port).partition("/")
        ends = (f"({end} host {address} and {protocol or 'tcp'} {end} port {number})" for end in ("src", "dst"))
        parts.append(" or ".join(ends))
    return f"not ({' or '.join(parts)})" if parts else ""


def _compiled(expression: str) -> str:
    """Returns the filter as the kernel takes it: lines of numbers."""
    tcpdump = [find_program("tcpdump"), "-y", "EN10MB", "-ddd"]
    return run_program([*tcpdump, *([expression] if expression else [])]).partition("\n")[2]
