"""A tun device: a link whose other end is a descriptor, where each read and write is one IP packet.

Source: Documentation/networking/tuntap.rst of the kernel.
"""

from __future__ import annotations

import fcntl
import os
import struct

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IFREQ = struct.Struct("16sH22x")


def make_tun(name: str) -> int:
    """Makes the device `name` in this network namespace and returns its descriptor, non-blocking, packets as they are.

    The device lives as long as a copy of the descriptor does, and the namespace with it. Raises OSError.
    """
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
