"""Reading and ending the streams of flows."""

import asyncio
import socket


async def read_all(stream):
    pieces = []
    while data := await stream.read():
        pieces.append(data)
    return b"".join(pieces)


async def end(stream):
    """Half-closes: the other direction goes on."""
    stream.notify_close()
    await asyncio.get_running_loop().sock_sendall(stream.sock, stream.outgoing.read())
    stream.sock.shutdown(socket.SHUT_WR)


async def eventually(condition, seconds=60.0):
    """Waits for what no event announces."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def send_in_turns(stream, data, piece=50_000):
    """Sends and takes back in turns, as a stream has one owner."""
    for start in range(0, len(data), piece):
        part = data[start : start + piece]
        await stream.write(part)
        back = b""
        while len(back) < len(part):
            back += await stream.read()
        assert back == part
