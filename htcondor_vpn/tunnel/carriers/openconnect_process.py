"""A running openconnect_client: started with what it needs to know, heard, and killed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.tunnel.carriers import openconnect_client
from htcondor_vpn.wire.trust import Pins


@dataclass(frozen=True)
class Login:
    """How to know a server, and how to be known by it.

    `pins` returns what is pinned now, and wins over `ca_file`. A password, a client certificate (PEM; `key` None if it
    is in the same file), or both.
    """

    user: str = ""
    password: str = ""
    certificate: Path | None = None
    key: Path | None = None
    pins: Pins = tuple
    ca_file: Path | None = None
    dtls: bool = True

    def request(self, url: str) -> dict[str, Any]:
        """What the client has to know at first, but for what changes: address, cookie, and what is pinned now."""
        files = {"certificate": self.certificate, "key": self.key or self.certificate, "ca_file": self.ca_file}
        return {
            "url": url, "user": self.user, "password": self.password, "dtls": self.dtls,
            "cookie": None, **{name: str(path) if path else None for name, path in files.items()},
        }  # fmt: skip


def find_library() -> None:
    """Raises `ProgramMissing` where there is no libopenconnect."""
    try:
        ctypes.CDLL(openconnect_client.LIBRARY)
    except OSError as error:
        raise ProgramMissing(
            f"there is no {openconnect_client.LIBRARY} on this machine: {error}", "install it (Debian: libopenconnect5)"
        ) from error


class ClientProcess:
    """One client, from `start` to `end`; it dies with us."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process, self._channel = process, channel

    @classmethod
    async def start(cls) -> ClientProcess:
        """Starts one, which waits for its request; raises OSError."""
        ours, theirs = Channel.pair()
        try:
            return cls(await _executed(theirs), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends it a message; raises OSError."""
        self._channel.send(message, descriptors)

    async def heard(self) -> dict[str, Any] | None:
        """Returns its next message, None when it has ended."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._channel.fileno(), _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._channel.fileno())
        received = self._channel.receive()
        return received[0] if received else None

    async def end(self) -> None:
        """Kills it, if it has not ended."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def _executed(channel: Channel) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-ISXutf8", openconnect_client.__file__, str(channel.fileno()),
        pass_fds=[channel.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)},
        preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
    )  # fmt: skip


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
