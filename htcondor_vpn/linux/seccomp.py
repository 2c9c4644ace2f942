"""Sockets of another network namespace for a program that does not know of it (seccomp_unotify(2)).

The program runs in a network namespace of its own under a filter that suspends certain calls of socket(2): those by
which it gets its connection to the world. Whoever holds the filter's listener answers each with a socket that it made
in *its* namespace. All other calls go their usual way. With the listener gone, the calls fail (ENOSYS): nothing falls
back.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Callable

from htcondor_vpn.errors import NamespacesUnavailable
from htcondor_vpn.linux.namespaces import prctl

#: AUDIT_ARCH_…, and the numbers of seccomp(2) and socket(2), of linux/audit.h and asm/unistd.h.
_MACHINES = {"x86_64": (0xC000003E, 317, 41), "aarch64": (0xC00000B7, 277, 198)}

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3

_RET_ALLOW, _RET_NOTIFY, _RET_ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, ALU|AND|K
_X32 = 0x40000000  # x86-64's second ABI has numbers from here on

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are little-endian.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 24, 32

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_ADD = struct.Struct("=QIIII")  # struct seccomp_notif_addfd
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_RECEIVE = 3 << 30 | _NOTIFICATION.size << 16 | ord("!") << 8
_SEND = 3 << 30 | _ANSWER.size << 16 | ord("!") << 8 | 1
_ADD_DESCRIPTOR = 1 << 30 | _ADD.size << 16 | ord("!") << 8 | 3
_ADD_AND_ANSWER = 1 << 1

#: Who called was killed, or interrupted; or has ended.
_GONE = {errno.ENOENT, errno.EINTR, errno.EINPROGRESS}

_libc = ctypes.CDLL(None, use_errno=True)

#: Makes a socket of a family, type and protocol.
MakeSocket = Callable[[int, int, int], socket.socket]


class Suspended(enum.Enum):
    """Which calls socket(AF_INET or AF_INET6, …) are those by which a program gets its connection to the world.

    The others are made to configure a link (ioctl), and have to belong to the program's own namespace.
    """

    #: SOCK_DGRAM with SOCK_NONBLOCK: wireguard-go.
    NON_BLOCKING_UDP = enum.auto()
    #: Those that name a protocol, as getaddrinfo(3) does: ocserv.
    WITH_PROTOCOL = enum.auto()


def socket_filter(machine: str, suspended: Suspended = Suspended.NON_BLOCKING_UDP) -> bytes:
    """The filter's program (struct sock_filter[]) for `machine`; raises `NamespacesUnavailable` for an unknown one."""
    architecture, _, socket_call = _known(machine)

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    kind = 0xF | socket.SOCK_NONBLOCK
    return b"".join(
        [
            step(_LOAD, _ARCHITECTURE),
            step(_EQUAL, architecture, if_true=1),
            step(_RETURN, _RET_ERRNO | errno.ENOSYS),  # the numbers of another architecture mean other calls
            step(_LOAD, _NUMBER),
            step(_AT_LEAST, _X32, if_false=1),
            step(_RETURN, _RET_ERRNO | errno.ENOSYS),
            step(_EQUAL, socket_call, if_false=6),
            step(_LOAD, _FIRST_ARGUMENT),
            step(_EQUAL, socket.AF_INET, if_true=1),
            step(_EQUAL, socket.AF_INET6, if_false=3),
            *(
                [
                    step(_LOAD, _SECOND_ARGUMENT),
                    step(_AND, kind),
                    step(_EQUAL, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, if_true=1),
                ]
                if suspended is Suspended.NON_BLOCKING_UDP
                else [step(_LOAD, _THIRD_ARGUMENT), step(_AND, 0xFF), step(_AT_LEAST, 1, if_true=1)]
            ),
            step(_RETURN, _RET_ALLOW),
            step(_RETURN, _RET_NOTIFY),
        ]
    )


def suspend_sockets(suspended: Suspended = Suspended.NON_BLOCKING_UDP) -> int:
    """Lays the filter over this process and what it executes, for good; returns the listener's descriptor.

    Raises `NamespacesUnavailable` where the kernel does not let us.
    """
    machine = platform.machine()
    program = socket_filter(machine, suspended)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    call = ctypes.c_long(_known(machine)[1])
    listener = int(_libc.syscall(call, _SET_MODE_FILTER, _NEW_LISTENER, header))
    if listener < 0:
        number = ctypes.get_errno()
        why = "another program watches our system calls already" if number == errno.EBUSY else os.strerror(number)
        raise NamespacesUnavailable(
            f"a program's sockets cannot be made for it: {why}", "Linux 5.14 or newer is needed, with seccomp"
        )
    return listener


def answer(listener: int, make: MakeSocket) -> None:
    """Answers the next suspended call, if there is one still, with what `make` returns for what it asks for.

    An OSError that `make` raises is what the program gets. To be called when `listener` is readable; raises OSError,
    EINVAL on a kernel before 5.14.
    """
    notification = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, notification)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    which, _, _, _, _, _, family, kind, protocol, *_ = _NOTIFICATION.unpack(notification)
    try:
        with make(family & 0xFFFFFFFF, kind & 0xF, protocol & 0xFFFFFFFF) as made:
            made.setblocking(not kind & socket.SOCK_NONBLOCK)
            _tell(listener, _ADD_DESCRIPTOR, _ADD.pack(which, _ADD_AND_ANSWER, made.fileno(), 0, os.O_CLOEXEC))
    except OSError as error:
        _tell(listener, _SEND, _ANSWER.pack(which, 0, -(error.errno or errno.EIO), 0))
        raise


def _tell(listener: int, request: int, what: bytes) -> None:
    try:
        fcntl.ioctl(listener, request, what)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _known(machine: str) -> tuple[int, int, int]:
    try:
        return _MACHINES[machine]
    except KeyError:
        raise NamespacesUnavailable(
            f"a program's sockets cannot be made for it on {machine}", f"it works on {' and '.join(_MACHINES)}"
        ) from None
