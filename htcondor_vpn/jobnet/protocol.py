"""How the wrapper and the hooks talk to the broker, over the UNIX socket `broker.sock` of the run folder.

Hooks that are a shell's come in by another door (hook_port.py).

A message is a line `VERB BYTES` and a body of that many bytes: lines `key value`, and after an empty line free text.
Namespaces travel beside a message (SCM_RIGHTS). Nothing here needs more than the standard library's smallest modules,
because the two clients (`wrapper/`, `hook.py`), each a program of its own, are started for every job.

| verb      | from    | body                                  | descriptors | answer `ok`, else `no` with `reason`   |
|-----------|---------|---------------------------------------|-------------|----------------------------------------|
| `prepare` | hook    | `machine`: the slot's ad; text: job's |             | text for HTCondor, as hooks print it   |
| `update`  | hook    |                                       |             |                                        |
| `start`   | wrapper | `chirp`, `slot`; text: `Vpn…`, name   | network     | `number`, `chain` (the site's wrapper) |
| `failed`  | wrapper | text: why the job cannot be executed  |             |                                        |
| `resume`  | wrapper | `number`, `starter`, `chirp`          | network     |                                        |
| `end`     | wrapper |                                       |             | `flights`; the totals are in the ad    |
| `join`    | wrapper |                                       |             | `chain`; user and network namespace    |

`start` and `resume` make the connection the job's lease: it lives as long as the connection, the wrapper and the
starter do.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LONGEST_HEADER_BYTES = 64
LONGEST_BODY_BYTES = 64 << 10
LONGEST_AD_BYTES = 8 << 20  # an ad holds the job's environment and arguments
MOST_DESCRIPTORS = 4
_CHUNK_BYTES = 64 << 10


class ProtocolError(Exception):
    """The peer sent something that is no message."""


class Message(NamedTuple):
    """A verb with the body's fields and text."""

    verb: str
    fields: Mapping[str, str] = {}
    text: str = ""

    def encode(self) -> bytes:
        """Encodes the message; raises ValueError for a field with a line break."""
        lines = []
        for key, value in self.fields.items():
            if "\n" in value:
                raise ValueError(f"the value of {key} has a line break")
            lines.append(f"{key} {value}\n")
        body = "".join(lines) + ("\n" + self.text if self.text else "")
        data = body.encode(errors="surrogateescape")
        return f"{self.verb} {len(data)}\n".encode() + data


def decode_header(line: bytes) -> tuple[str, int]:
    """Decodes the first line to verb and length of the body; raises `ProtocolError`."""
    try:
        verb, length = line.decode("ascii").split(" ")
        size = int(length) if length.isdigit() else -1
    except ValueError:
        raise ProtocolError(f"no message begins with {line[:40]!r}") from None
    limit = LONGEST_BODY_BYTES + LONGEST_AD_BYTES if verb == "prepare" else LONGEST_BODY_BYTES
    if not 0 <= size <= limit:
        raise ProtocolError(f"a {verb[:20]} message of {length[:20]} bytes is not allowed")
    return verb, size


def decode_body(verb: str, body: bytes) -> Message:
    """Decodes a body; raises `ProtocolError`."""
    # HTCondor passes ads on in whatever encoding the submitter used.
    head, _, text = body.decode("utf-8", errors="surrogateescape").partition("\n\n" if body[:1] != b"\n" else "\n")
    fields = {}
    for line in head.splitlines():
        key, space, value = line.partition(" ")
        if not space:
            raise ProtocolError(f"{line[:40]!r} is no field")
        fields[key] = value
    return Message(verb, fields, text)


class Connection:
    """The broker's end of one connection, in an asyncio loop. `close` it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.setblocking(False)
        self.descriptors: list[int] = []
        self._buffer = bytearray()

    async def receive(self) -> Message | None:
        """Receives one message, None at the end; its descriptors are in `descriptors`. Raises `ProtocolError`."""
        header = await self._until_line()
        if header is None:
            return None
        verb, size = decode_header(header)
        while len(self._buffer) < size:
            if not await self._fill():
                raise ProtocolError(f"the connection ended within a {verb[:20]} message")
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return decode_body(verb, body)

    async def _until_line(self) -> bytes | None:
        while True:
            end = self._buffer.find(b"\n", 0, LONGEST_HEADER_BYTES)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) >= LONGEST_HEADER_BYTES:
                raise ProtocolError("no message begins with a line that long")
            if not await self._fill():
                if self._buffer:
                    raise ProtocolError("the connection ended within a message")
                return None

    async def _fill(self) -> bool:
        """Receives what there is, waiting for it; False at the end."""
        space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        while True:
            try:
                data, control, flags, _ = self.socket.recvmsg(_CHUNK_BYTES, space, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                await readable(self.socket.fileno())
            except ConnectionResetError:
                return False
        for level, kind, rights in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                self.descriptors += received
        if flags & socket.MSG_CTRUNC or len(self.descriptors) > MOST_DESCRIPTORS:
            raise ProtocolError("too many descriptors")
        self._buffer += data
        return bool(data)

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Sends one message; raises OSError when the peer is gone. Set a deadline around it."""
        data = message.encode()
        if descriptors:
            # A message with descriptors is short, and the first thing in the socket's empty buffer.
            rights = array.array("i", descriptors).tobytes()
            sent = self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            data = data[sent:]
        if data:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    def take_descriptors(self, count: int) -> list[int]:
        """Hands over the `count` descriptors that came with a message; raises `ProtocolError` for another number."""
        if len(self.descriptors) != count:
            raise ProtocolError(f"{len(self.descriptors)} descriptors came where {count} were expected")
        taken, self.descriptors = self.descriptors, []
        return taken

    def close(self) -> None:
        """Closes the connection and the descriptors that nobody took."""
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())


async def readable(descriptor: int) -> None:
    """Waits until there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
