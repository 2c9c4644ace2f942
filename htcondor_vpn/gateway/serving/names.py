"""Host names to addresses by the gateway's own name service, off the loop's thread.

Threads of our own instead of an executor: a name server that does not answer must not keep the gateway from ending,
and Python waits for an executor's threads. A look-up cannot be stopped: it counts until it has ended, also when no one
waits for it any more.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Hashable
from ipaddress import ip_address

from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.fair_share import FairTurns

_MAX_AT_ONCE = 128


class Names:
    """Looks names up; at most 128 at once, which those who ask share. The others wait."""

    def __init__(self) -> None:
        self._turns = FairTurns(_MAX_AT_ONCE)

    async def lookup(self, name: str, asker: Hashable) -> list[Address]:
        """Returns the addresses of `name`, the preferred ones first; raises OSError if there are none."""
        await self._turns.begin(asker)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()

        def ended(outcome: list[Address] | OSError) -> None:
            self._turns.end(asker)
            if found.done():
                return  # no one waits any more
            if isinstance(outcome, OSError):
                found.set_exception(outcome)
            else:
                found.set_result(outcome)

        def look_up() -> None:
            outcome = addresses_of(name)
            try:
                loop.call_soon_threadsafe(ended, outcome)
            except RuntimeError:
                return  # the loop has ended meanwhile, and so has everyone who asked

        try:
            threading.Thread(target=look_up, daemon=True).start()
        except RuntimeError as error:  # a limit of processes
            self._turns.end(asker)
            raise OSError(errno.EAGAIN, str(error)) from error
        return await found


def addresses_of(name: str) -> list[Address] | OSError:
    """Returns the addresses of `name` as this host's name service has them, or why there are none; takes its time."""
    try:
        results = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of more than 63 characters
        return socket.gaierror(socket.EAI_NONAME, str(error))
    except OSError as error:
        return error
    return [ip_address(str(result[4][0]).partition("%")[0]) for result in results]
