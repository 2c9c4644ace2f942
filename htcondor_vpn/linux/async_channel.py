"""A channel's end in an asyncio loop: nothing waits for the other end, and messages keep their order."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from htcondor_vpn.linux.channel import Channel

_AT_ONCE = 64
#: Too much is under way, or the kernel has no memory for more: there is no event to wait for.
_BUSY = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)
_BUSY_SECONDS = 0.05


class AsyncChannel:
    """Calls `heard` with each message and its descriptors, which are its own to close, and `ended` once at the end.

    It ends when the other end is gone, or by `close`, which calls nothing. What is sent afterwards is dropped; and of
    what the other end does not take the oldest, beyond `most_waiting` messages.
    """

    def __init__(
        self,
        channel: Channel,
        heard: Callable[[dict[str, Any], list[int]], None],
        ended: Callable[[], None],
        most_waiting: int = sys.maxsize,
    ) -> None:
        self._channel, self._heard, self._ended, self._most_waiting = channel, heard, ended, most_waiting
        self._waiting: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._closed = self._stuck = False
        self._loop = asyncio.get_running_loop()
        channel.sock.setblocking(False)
        self._loop.add_reader(channel, self.read)

    def send(self, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
        """Sends a message, now or when the other end takes it; `descriptors` are closed then, and never used again."""
        self._waiting.append((message, list(descriptors)))
        if len(self._waiting) > self._most_waiting:
            _close(self._waiting.popleft()[1])
        if self._closed:
            self._drop()
        elif not self._stuck:
            self._flush()

    def read(self) -> bool:
        """Takes messages that have come; returns whether there may be more."""
        for _ in range(_AT_ONCE):
            if self._closed:
                return False
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return False
            if received is None:
                self._over()
            else:
                self._heard(*received)
        return not self._closed

    def flush(self, seconds: float) -> None:
        """Waits until the other end has taken all, for so long at most; to be called last, before the end."""
        if not self._closed:
            self._channel.sock.settimeout(seconds)
            self._flush()

    def close(self) -> None:
        """Ends it: the other end receives what was sent, and then its end. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()
            self._drop()

    def _flush(self) -> None:
        self._stuck = False
        self._loop.remove_writer(self._channel)
        while self._waiting:
            message, descriptors = self._waiting[0]
            try:
                self._channel.send(message, descriptors)
            except BlockingIOError:
                self._stuck = True
                self._loop.add_writer(self._channel, self._flush)
                return
            except OSError as error:
                if error.errno not in _BUSY:
                    self._over()
                    return
                self._stuck = True
                self._loop.call_later(_BUSY_SECONDS, self._again)
                return
            self._waiting.popleft()
            _close(descriptors)

    def _again(self) -> None:
        if not self._closed:
            self._flush()

    def _over(self) -> None:
        self.close()
        self._ended()

    def _drop(self) -> None:
        while self._waiting:
            _close(self._waiting.popleft()[1])


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
