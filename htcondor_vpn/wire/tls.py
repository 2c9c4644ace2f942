"""One TLS connection over memory BIOs, in an asyncio loop, with one owner.

An `ssl.SSLSocket` makes a system call per record of 16 KiB. Here TLS works on memory and the socket is read and
written in large pieces, which is worth more than half of the throughput; asyncio's own TLS copies too often for that.

The end of the stream is TLS' close_notify. A TCP connection that ends without one was cut, and counts as a reset: no
one on the path can pass off a truncated stream for a whole one (RFC 8446, section 6.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

#: How much is read from a socket at once while relaying, bytes.
CHUNK_BYTES = 512 * 1024
_READ_BYTES = 64 * 1024

#: The most that a peer may leave untaken of what its own messages gave rise to: an answer to a key update has 27 bytes,
#: and nobody needs a new key more often than once in millions of records (RFC 8446, section 5.5).
_MOST_ANSWERS_BYTES = 64 * 1024


class TlsStream:
    """A TLS connection; made by `client` or `server`. It belongs to one task at a time.

    `sock` is the non-blocking TCP socket below it, `tls` the SSLObject, `incoming` and `outgoing` its ciphertext.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_hostname: str | None,
        server: bool,
        session: ssl.SSLSession | None = None,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server,
            server_hostname=None if server else server_hostname,
            session=session,
        )
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def client(
        cls,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_hostname: str | None,
        session: ssl.SSLSession | None = None,
    ) -> TlsStream:
        """Shakes hands as the client on the connected `sock`; raises ssl.SSLError or OSError and closes `sock`.

        With the `session` of an earlier stream neither side signs anything, where the server still knows it.
        """
        return await cls._shaken(cls(sock, context, server_hostname, False, session))

    @classmethod
    async def server(cls, sock: socket.socket, context: ssl.SSLContext) -> TlsStream:
        """Shakes hands as the server on the accepted `sock`; raises ssl.SSLError or OSError and closes `sock`."""
        return await cls._shaken(cls(sock, context, None, True))

    @staticmethod
    async def _shaken(stream: TlsStream) -> TlsStream:
        sock = stream.sock
        try:
            while True:
                try:
                    stream.tls.do_handshake()
                except ssl.SSLWantReadError:
                    await stream._flush()
                    await stream._fill()
                else:
                    await stream._flush()
                    return stream
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # the alert that tells the peer why; the error is raised all the same
                await stream._flush()
            sock.close()
            raise
        except BaseException:
            sock.close()
            raise

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER, if it sent one; of a resumed session that of its first handshake."""
        return self.tls.getpeercert(binary_form=True)

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later `client` can resume: a server sends it with or before its first bytes."""
        session = self.tls.session
        return session if session is not None and session.has_ticket else None

    def waits(self) -> bool:
        """Takes in what has come to a stream that nobody reads; returns False if it is more than session tickets."""
        try:
            data = self.sock.recv(_READ_BYTES)
            self.incoming.write(data)
            self.tls.read(1)
        except BlockingIOError:
            return True
        except ssl.SSLWantReadError:
            return bool(data) and not self.outgoing.pending  # it is nothing to be answered either
        except OSError:
            return False
        return False

    async def read(self, limit: int = _READ_BYTES) -> bytes:
        """Returns 1 to `limit` bytes, or b"" once the peer has ended its side with close_notify.

        Raises ConnectionResetError where the TCP connection ends without it.
        """
        while True:
            try:
                data = self.tls.read(limit)
            except ssl.SSLWantReadError:
                await self._flush()  # an answer to a key update, or an alert, that reading gave rise to
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""
            else:
                await self._flush()
                return data

    def bound_answers(self) -> None:
        """To be called by who reads on while the peer takes nothing; raises ConnectionResetError.

        `outgoing` must hold no payload: what it holds are answers to what the peer sent, which could send without end.
        """
        if self.outgoing.pending > _MOST_ANSWERS_BYTES:
            raise ConnectionResetError("the peer makes us answer, and takes no answer")

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`; raises OSError."""
        if data:
            self.tls.write(data)
            await self._flush()

    async def close(self) -> None:
        """Ends our side with close_notify and closes; the peer sees a clean end. Never raises."""
        try:
            self.notify_close()
            await self._flush()
        except (OSError, ssl.SSLError):
            self.abort()
        else:
            self.sock.close()

    def notify_close(self) -> None:
        """Puts close_notify into `outgoing`. `incoming` must hold no whole record, which unwrap() would refuse."""
        with contextlib.suppress(ssl.SSLWantReadError):  # it would like to wait for the peer's own close_notify
            self.tls.unwrap()

    def abort(self) -> None:
        """Cuts the connection: the peer sees a reset. Idempotent."""
        reset(self.sock)

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self.sock, _READ_BYTES)
        if not data:
            raise ConnectionResetError("the connection ended without close_notify")
        self.incoming.write(data)
        await asyncio.sleep(0)  # sock_recv does not give way while there is something: neither would who reads us

    async def _flush(self) -> None:
        if self.outgoing.pending:
            await self._loop.sock_sendall(self.sock, self.outgoing.read())


def reset_on_close(sock: socket.socket, on: bool) -> None:
    """Decides whether closing a TCP socket shows its peer a reset (SO_LINGER with zero seconds, socket(7)).

    It holds for the kernel's closing as well, when the process is killed. Raises OSError.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(on), 0))


def reset(sock: socket.socket) -> None:
    """Closes a TCP socket so that its peer sees a reset. Idempotent."""
    with contextlib.suppress(OSError):  # closed already
        reset_on_close(sock, True)
    sock.close()
