"""The resolver of pilots whose packets this host's kernel forwards: at an address of their link, where we answer.

So they have the one address of a resolver that there is in each of our tunnels, and whatever name servers this host has
are asked by us, also those that only its loopback reaches.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from htcondor_vpn.gateway.serving.resolver import Resolver
from htcondor_vpn.linux.acceptor import Acceptor
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.tunnel.catching.dns import DnsResponder

_PORT = 53
_BACKLOG = 1024


class HostResolver:
    """Answers at `addresses`, which are this host's, until `close`. Raises OSError."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        self._responder = DnsResponder(Resolver().answer)
        self._sockets: list[socket.socket] = []
        self._acceptors: list[Acceptor] = []
        try:
            for address in addresses:
                datagrams, streams = self._bound(address, socket.SOCK_DGRAM), self._bound(address, socket.SOCK_STREAM)
                streams.listen(_BACKLOG)
                self._responder.serve_datagrams(datagrams)
                self._acceptors.append(Acceptor(streams, self._responder.serve_stream))
        except BaseException:
            self.close()
            raise

    def _bound(self, address: Address, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), _PORT))
        return sock

    def close(self) -> None:
        """Answers no more."""
        for acceptor in self._acceptors:
            acceptor.close()
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
