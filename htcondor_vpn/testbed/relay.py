"""Passes frames between two tap devices, each way after a delay and with a loss: `relay NEAR FAR`.

Lines `DELAY_SECONDS LOSS MTU TOLD` on the standard input say how, each answered by one on the standard output; its
end is ours. Packets larger than the MTU, if that is not 0, are dropped, and if TOLD is 1 their sender is told, as by a
router. Without loss and MTU the kernel hands frames over as large as the sender made them (up to 64 KB, IFF_VNET_HDR);
else it cuts them before, so that single packets are lost. Standard library only: it runs as a process of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

from htcondor_vpn.testbed.too_big import ETHERNET_BYTES, too_big

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8
_VNET_HDR_BYTES = 10
_FRAME_BYTES = 65536 + 64

#: What we hold each way at most; more is dropped, as by any router.
_QUEUE_BYTES = 128 << 20


def open_tap(name: str) -> int:
    """Makes the tap device `name` and returns its descriptor; the device goes with it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    return descriptor


class Direction:
    """One way: frames read from `source` are written to `target` when they are due, in their order."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.delay_seconds = self.loss = 0.0
        self.mtu, self.told = 0, False
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued_bytes = 0

    def change(self, delay_seconds: float, loss: float, mtu: int, told: bool) -> None:
        """Delays and loses what is read from now on like this."""
        self.delay_seconds, self.loss, self.mtu, self.told = delay_seconds, loss, mtu, told
        whole_frames = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
        fcntl.ioctl(self.source, _TUNSETOFFLOAD, 0 if loss or mtu else whole_frames)

    def take(self) -> None:
        """Reads what is there, but not without an end: the other way wants its turn."""
        for _ in range(64):
            try:
                frame = os.read(self.source, _FRAME_BYTES)
            except BlockingIOError:
                return
            if self.queued_bytes + len(frame) > _QUEUE_BYTES or random.random() < self.loss:  # noqa: S311
                continue
            if self.mtu and len(frame) - _VNET_HDR_BYTES - ETHERNET_BYTES > self.mtu:
                if self.told and (answer := too_big(frame[_VNET_HDR_BYTES:], self.mtu)):
                    os.write(self.source, bytes(_VNET_HDR_BYTES) + answer)
                continue
            self.queue.append((time.monotonic() + self.delay_seconds, frame))
            self.queued_bytes += len(frame)

    def give(self) -> float | None:
        """Writes what is due and returns when the next frame will be, None if there is none."""
        while self.queue and self.queue[0][0] <= time.monotonic():
            frame = self.queue.popleft()[1]
            self.queued_bytes -= len(frame)
            try:
                os.write(self.target, frame)
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS):  # the device is down, or full
                    raise
        return self.queue[0][0] if self.queue else None


def main() -> None:
    """Runs until the standard input ends."""
    near, far = (open_tap(name) for name in sys.argv[1:3])
    ways = {near: Direction(near, far), far: Direction(far, near)}
    control = sys.stdin.fileno()
    while True:
        due = [when for way in ways.values() if (when := way.give()) is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([control, *ways], [], [], wait)
        for descriptor in ready:
            if descriptor != control:
                ways[descriptor].take()
            elif line := sys.stdin.readline():
                delay_seconds, loss, mtu, told = line.split()
                for way in ways.values():
                    way.change(float(delay_seconds), float(loss), int(mtu), told == "1")
                print("relaying", flush=True)
            else:
                return


if __name__ == "__main__":
    main()
