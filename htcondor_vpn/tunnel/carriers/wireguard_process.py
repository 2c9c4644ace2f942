"""A running wireguard-go: it gets the UDP sockets that it asks for, its log goes into ours, and its end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket

from htcondor_vpn.linux import seccomp
from htcondor_vpn.linux.path_mtu import datagram_socket
from htcondor_vpn.linux.wireguard_go import Started
from htcondor_vpn.wire.wireguard import Device

_END_MS = 2000
_WORDS_BYTES = 4096

log = logging.getLogger(__name__)


class WireguardProcess:
    """A wireguard-go that was started (`TunNamespace.start_wireguard_go`), until its end; `name` is for the log."""

    def __init__(self, started: Started, name: str) -> None:
        self._started, self._name = started, name
        self.device = Device(socket.socket(fileno=started.control))
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(started.process, self.over)
        loop.add_reader(started.listener, self._asked)
        loop.add_reader(started.log, self._said)

    def _asked(self) -> None:
        """Makes the sockets that it asks for: the node's."""
        try:
            seccomp.answer(self._started.listener, lambda family, *_: datagram_socket(family))
        except OSError as error:
            log.warning("wireguard-go to %s gets no socket: %s", self._name, error)

    def _said(self) -> None:
        said = os.read(self._started.log, _WORDS_BYTES)
        for line in said.decode(errors="replace").splitlines():
            log.warning("wireguard-go to %s: %s", self._name, line.strip())
        if not said:
            asyncio.get_running_loop().remove_reader(self._started.log)

    def over(self) -> None:
        """Takes note of its end."""
        if not self.ended.done():
            asyncio.get_running_loop().remove_reader(self._started.process)
            asyncio.get_running_loop().remove_reader(self._started.listener)
            self.ended.set_result(None)

    def kill(self) -> None:
        """Kills it, be it stopped; `ended` is done soon afterwards."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._started.process, signal.SIGKILL)

    def end(self) -> None:
        """Kills it, waits for that, and lets go of what belongs to it."""
        loop = asyncio.get_running_loop()
        self.kill()
        poller = select.poll()  # select(2) knows no descriptors beyond 1023, of which an engine has many
        poller.register(self._started.process, select.POLLIN)
        poller.poll(_END_MS)
        self.over()
        loop.remove_reader(self._started.log)
        self.device.close()
        for descriptor in (self._started.process, self._started.listener, self._started.log):
            os.close(descriptor)
