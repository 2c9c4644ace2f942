"""Which calls the filter suspends: its program is run here as the kernel runs it."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.errors import NamespacesUnavailable
from htcondor_vpn.linux.seccomp import Suspended, socket_filter

ALLOW, NOTIFY, REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
X86_64, AARCH64, I386 = (0xC000003E, 41), (0xC00000B7, 198), (0x40000003, 359)
UDP = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def judged(machine, architecture, number, *arguments, suspended=Suspended.NON_BLOCKING_UDP):
    """What the filter for `machine` returns for a call: classic BPF, as far as the filter uses it."""
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *words)
    program = list(struct.iter_unpack("<HBBI", socket_filter(machine, suspended)))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        elif code == 0x35:
            at += if_true if accumulator >= value else if_false
        else:
            assert code == 0x06
            return value


@pytest.mark.parametrize(("machine", "known"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_what_is_suspended(machine, known):
    for family in (socket.AF_INET, socket.AF_INET6):
        assert judged(machine, *known, family, UDP) == NOTIFY
        # The link's own settings (ioctl), and what is no UDP.
        assert judged(machine, *known, family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) == ALLOW
        assert judged(machine, *known, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) == ALLOW
    assert judged(machine, *known, socket.AF_NETLINK, UDP) == ALLOW
    assert judged(machine, *known, socket.AF_UNIX, UDP) == ALLOW


@pytest.mark.parametrize(("machine", "known"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_other_machines_calls_fail(machine, known):
    for other in (X86_64, AARCH64, I386):
        if other != known:
            assert judged(machine, *other, socket.AF_INET, UDP) == REFUSE
    assert judged("x86_64", X86_64[0], 0x40000000 | 41, socket.AF_INET, UDP) == REFUSE  # x32


@given(
    st.sampled_from([("x86_64", X86_64), ("aarch64", AARCH64)]), st.integers(0, (1 << 30) - 1),
    st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1),
)  # fmt: skip
def test_nothing_else_is_touched(machine, number, family, kind):
    """The kernel looks at the lower half of family and type."""
    name, (architecture, socket_call) = machine
    inet = family & 0xFFFFFFFF in (socket.AF_INET, socket.AF_INET6)
    udp = kind & 0xF == socket.SOCK_DGRAM and kind & socket.SOCK_NONBLOCK
    expected = NOTIFY if number == socket_call and inet and udp else ALLOW
    assert judged(name, architecture, number, family, kind) == expected
    assert judged(name, architecture, socket_call, family, kind) == (NOTIFY if inet and udp else ALLOW)


@pytest.mark.parametrize(("machine", "known"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_what_is_suspended_by_its_protocol(machine, known):
    how = {"suspended": Suspended.WITH_PROTOCOL}
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, protocol in ((socket.SOCK_STREAM, socket.IPPROTO_TCP), (UDP, socket.IPPROTO_UDP)):
            assert judged(machine, *known, family, kind, protocol, **how) == NOTIFY
            assert judged(machine, *known, family, kind, 0, **how) == ALLOW
    assert judged(machine, *known, socket.AF_NETLINK, socket.SOCK_RAW, 15, **how) == ALLOW


def test_a_machine_we_do_not_know():
    with pytest.raises(NamespacesUnavailable, match="riscv64"):
        socket_filter("riscv64")
