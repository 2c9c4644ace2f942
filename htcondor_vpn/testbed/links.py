"""The node's cable: shaped to a rate, delayed, lossy, cut, or swallowing everything; changed while in use.

Both hosts keep their interfaces whatever happens here, since the cable runs through a namespace of its own, `line`:

    node eth0 = `node` [bridge wire] `dmz` = eth0 dmz                        (undelayed)
    node eth0 = `node` [bridge wire] tap - relay - tap [bridge far] `dmz` = eth0 dmz     (delay, loss, MTU)

The rate is a token bucket on the way out of `line` on each side. Delay, loss and MTU are a process of ours between two
tap devices (`relay`): not every kernel has netem, and one way that works everywhere is one behaviour to know.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.errors import ProgramMissing, UsageError
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.settling import not_forwarding, settle

#: The cable's ends in `line`.
NODE_END, DMZ_END = "node", "dmz"

_NEAR, _FAR = "wire", "far"
_NEAR_TAP, _FAR_TAP = "tapnear", "tapfar"

#: A bucket must hold one large (GSO) frame or two milliseconds of the rate; its queue adds so much delay at most.
_BURST_BYTES, _BURST_SECONDS, _QUEUE_MS = 65536 + 1514, 0.002, 20

#: Frames that a tap may hold while the relay is busy; more is dropped, as by any router.
_TAP_QUEUE_FRAMES = 4096

_TUN = "/dev/net/tun"
_STOP_SECONDS = 5.0


class Shape(NamedTuple):
    """What a link does to its traffic, each way: `rate_mbps` (None: as fast as it goes), `delay_ms` one way, `loss`.

    Packets of more than `mtu` bytes do not pass (None: the hosts' own limit holds), and their senders are told if
    `mtu_told`, as by a router, or not, as behind a firewall that drops ICMP.
    """

    rate_mbps: float | None = None
    delay_ms: float = 0
    loss: float = 0
    mtu: int | None = None
    mtu_told: bool = True

    @property
    def relayed(self) -> bool:
        """Whether it takes a process of ours."""
        return bool(self.delay_ms or self.loss or self.mtu)

    def check(self) -> None:
        """Raises `UsageError` for a shape that no link can have."""
        if self.rate_mbps is not None and not 0.1 <= self.rate_mbps <= 100_000:
            raise UsageError(f"a link's rate of {self.rate_mbps:g} Mbit/s is not between 0.1 and 100000")
        if not 0 <= self.delay_ms <= 10_000:
            raise UsageError(f"a link's delay of {self.delay_ms:g} ms is not between 0 and 10000")
        if not 0 <= self.loss < 1:
            raise UsageError(f"a link's loss of {self.loss:g} is not a fraction from 0 to below 1")
        if self.mtu is not None and not 68 <= self.mtu <= 1500:
            raise UsageError(f"a link's MTU of {self.mtu} bytes is not between 68 and 1500")


class Link:
    """The cable in the namespace of `line`, whose two ends lie there already. Its log goes into `folder`."""

    def __init__(self, line: Host, folder: Path) -> None:
        self.line = line
        self._log = folder / "relay.log"
        self._relay: subprocess.Popen[bytes] | None = None
        self.current = Shape()
        # Nothing but the two hosts' own frames may be on the cable: no address, no multicast of the bridges'.
        sysctl = [find_program("sysctl", "procps"), "-qw", "net.ipv6.conf.all.disable_ipv6=1"]
        line.run([*sysctl, "net.ipv6.conf.default.disable_ipv6=1"], as_root=True, check=True)
        self._change(
            *(f"link add {bridge} type bridge stp_state 0 mcast_snooping 0" for bridge in (_NEAR, _FAR)),
            f"link set {NODE_END} master {_NEAR}",
            f"link set {DMZ_END} master {_NEAR}",
            *(f"link set {name} up" for name in (_NEAR, _FAR, NODE_END, DMZ_END)),
        )

    def shape(
        self,
        rate_mbps: float | None = None,
        delay_ms: float = 0,
        loss: float = 0,
        mtu: int | None = None,
        mtu_told: bool = True,
    ) -> None:
        """Gives the link this `Shape` in place of the one it had; connections survive.

        Raises `UsageError` for an impossible shape, `ProgramMissing` if there is no usable tun device for its delay.
        """
        wanted = Shape(rate_mbps, delay_ms, loss, mtu, mtu_told)
        wanted.check()
        if wanted.relayed:
            self._relayed(wanted)
        else:
            self._unplug_relay()
        for end in (NODE_END, DMZ_END):
            self._limit(end, wanted)
        self.current = wanted

    def _limit(self, end: str, shape: Shape) -> None:
        tc = [find_program("tc", "iproute2"), "qdisc"]
        if shape.rate_mbps is None:
            if self.current.rate_mbps is not None:
                self.line.run([*tc, "delete", "dev", end, "root"], as_root=True, check=True)
            return
        rate_bps = round(shape.rate_mbps * 1e6)
        burst_bytes = max(_BURST_BYTES, round(rate_bps / 8 * _BURST_SECONDS))
        self.line.run(
            [*tc, "replace", "dev", end, "root", "tbf", "rate", f"{rate_bps}bit", "burst", f"{burst_bytes}b",
             "latency", f"{_QUEUE_MS + shape.delay_ms:g}ms"],
            as_root=True, check=True,
        )  # fmt: skip

    def _relayed(self, shape: Shape) -> None:
        plug = self._relay is None
        if self._relay is None:
            if not os.access(_TUN, os.R_OK | os.W_OK):
                raise ProgramMissing(f"a link with delay, loss or MTU needs {_TUN}", f"modprobe tun; chmod 0666 {_TUN}")
            self._log.touch()
            self._relay = self.line.start(
                [sys.executable, "-m", "htcondor_vpn.testbed.relay", _NEAR_TAP, _FAR_TAP],
                as_root=True, log=self._log, stdin=subprocess.PIPE,
            )  # fmt: skip
        start_bytes = self._log.stat().st_size
        assert self._relay.stdin is not None
        told = f"{shape.delay_ms / 1e3} {shape.loss} {shape.mtu or 0} {int(shape.mtu_told)}\n"
        self._relay.stdin.write(told.encode())
        self._relay.stdin.flush()
        wait_for_log(self._log, rb"^relaying", self._relay, start_bytes=start_bytes)
        if plug:
            taps = ((_NEAR_TAP, _NEAR), (_FAR_TAP, _FAR))
            self._change(
                *(f"link set {tap} txqueuelen {_TAP_QUEUE_FRAMES} master {bridge} up" for tap, bridge in taps),
                f"link set {DMZ_END} master {_FAR}",
            )

    def _unplug_relay(self) -> None:
        if self._relay is not None:
            self._change(f"link set {DMZ_END} master {_NEAR}")
            self.close()

    def close(self) -> None:
        """Ends the relay, if there is one; the cable is of no use then."""
        if self._relay is None:
            return
        relay, self._relay = self._relay, None
        assert relay.stdin is not None
        relay.stdin.close()
        try:
            relay.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait(_STOP_SECONDS)

    def down(self) -> None:
        """Pulls the cable out: both hosts see that they have no carrier."""
        self._change(f"link set {NODE_END} down", f"link set {DMZ_END} down")

    def blackhole(self) -> None:
        """Swallows everything, both ways; neither host can tell from its own interface."""
        self._change(f"link set {_NEAR} down", f"link set {_FAR} down")

    def up(self) -> None:
        """Ends `down` and `blackhole`; frames pass when it returns."""
        self._change(*(f"link set {name} up" for name in (_NEAR, _FAR, NODE_END, DMZ_END)))

    def _change(self, *lines: str) -> None:
        settle(self.line, not_forwarding, *lines)
