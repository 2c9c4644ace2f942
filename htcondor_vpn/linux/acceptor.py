"""Takes what comes to a listening socket in an asyncio loop, and waits while there are no descriptors for it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

_AT_ONCE = 64
_PAUSE_SECONDS = 0.1

log = logging.getLogger(__name__)


class Acceptor:
    """Calls `take` with each connection to `listener`, non-blocking, until `close`; the listener stays open."""

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._listener, self._take = listener, take
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = self._waits = False
        listener.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Takes no more; to be called before the listener is closed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    def _watch(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it was given up before we came to it
            except OSError as error:  # no descriptors left: let some connections end first
                if not self._waits:
                    log.error("connections wait: %s", error)
                self._waits = True
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._watch)
                return
            self._waits = False
            sock.setblocking(False)
            self._take(sock)
