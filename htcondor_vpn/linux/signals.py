"""Signals as data: a descriptor to wait on (signalfd(2)), which also tells who sent one. Python has no call for it."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

_SFD_CLOEXEC = 0o2000000
_SFD_NONBLOCK = 0o4000
_INFO_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


class Received(NamedTuple):
    """One signal; `by_kernel` where no process sent it, as with the keys of a terminal."""

    number: signal.Signals
    by_kernel: bool


class SignalDescriptor:
    """Blocks `numbers` for this process and makes them readable on `fileno()`.

    `mask_before` and `ignored_before` say how this process was started, as nohup(1) and batch systems may. A blocked
    signal is read here though it be ignored, but for SIGCHLD: ignored, it has the kernel throw away the children's
    statuses, and is therefore set to its default. Children restore both before they execute anything.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        numbers = set(numbers)
        self.mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        self.ignored_before = {number for number in numbers if signal.getsignal(number) is signal.SIG_IGN}
        if signal.SIGCHLD in self.ignored_before:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        mask = (ctypes.c_ubyte * 128)()  # sigset_t, 1024 bits
        for number in numbers:
            mask[(number - 1) // 8] |= 1 << (number - 1) % 8
        self._descriptor = _libc.signalfd(-1, mask, _SFD_CLOEXEC | _SFD_NONBLOCK)
        if self._descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"signalfd: {os.strerror(code)}")

    def fileno(self) -> int:
        return self._descriptor  # type: ignore[no-any-return]

    def read(self) -> list[Received]:
        """Returns the signals that came since the last call."""
        try:
            data = os.read(self._descriptor, 32 * _INFO_BYTES)
        except BlockingIOError:
            return []
        found = []
        for offset in range(0, len(data), _INFO_BYTES):
            number, _, code = struct.unpack_from("=IiI", data, offset)
            found.append(Received(signal.Signals(number), ctypes.c_int32(code).value > 0))
        return found

    def restore(self) -> None:
        """Gives a forked child the signals with which this process was started, as an exec passes them on."""
        if signal.SIGCHLD in self.ignored_before:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask_before)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def raised(numbers: Iterable[signal.Signals], make: Callable[[int], Exception]) -> Iterator[None]:
    """Within, a signal raises what `make` makes of its number, unless this process was started with it ignored."""

    def raise_it(number: int, _: FrameType | None) -> None:
        raise make(number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, raise_it)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_like(number: int) -> None:
    """Ends this process by signal `number`, so that its parent sees what ours did; without a second core file."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
