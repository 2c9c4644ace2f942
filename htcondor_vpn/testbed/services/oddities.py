"""Far sides that end connections in their own way: `oddities ADDRESS...`, ready when it says so.

ECHO_PORT: TCP sends everything back once the client has sent its last byte (half-close); UDP sends each datagram back.
RESET_PORT: sends RESET_AFTER_BYTES bytes (`payload`) and resets the connection once the client has acknowledged them.
REFUSED_PORT: nobody listens there.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios

from htcondor_vpn.testbed.services import payload

REFUSED_PORT = 1
ECHO_PORT = 7
RESET_PORT = 9
RESET_AFTER_BYTES = 300_000

_DEADLINE_SECONDS = 60.0
_ACKNOWLEDGED_POLL_SECONDS = 0.002


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(await reader.read())
        await writer.drain()
    except ConnectionError:
        pass  # the client's own decision
    finally:
        writer.close()


async def _reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        for chunk in payload.chunks(RESET_AFTER_BYTES):
            writer.write(bytes(chunk))
        await asyncio.wait_for(_acknowledged(writer, sock), _DEADLINE_SECONDS)
    except (ConnectionError, asyncio.TimeoutError):
        pass  # it ends in any case
    finally:
        writer.transport.abort()


async def _acknowledged(writer: asyncio.StreamWriter, sock: socket.socket) -> None:
    await writer.drain()
    # A reset overtakes what is not acknowledged, and the kernel has no event for that: so its count is asked for.
    while writer.transport.get_write_buffer_size() or any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))):
        await asyncio.sleep(_ACKNOWLEDGED_POLL_SECONDS)


class _DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(data, address)  # type: ignore[attr-defined]


async def _serve(addresses: list[str]) -> None:
    loop = asyncio.get_running_loop()
    servers = []
    for address in addresses:
        servers.append(await asyncio.start_server(_echo, address, ECHO_PORT))
        servers.append(await asyncio.start_server(_reset, address, RESET_PORT))
        await loop.create_datagram_endpoint(_DatagramEcho, (address, ECHO_PORT))
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
