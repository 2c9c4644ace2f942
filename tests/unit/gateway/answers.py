"""What a gateway says to peers that are no pilots of ours, read byte by byte."""

import asyncio


async def everything(sock):
    """Reads until the gateway ends the TCP connection."""
    data = b""
    loop = asyncio.get_running_loop()
    try:
        while piece := await loop.sock_recv(sock, 65536):
            data += piece
    except ConnectionResetError:
        return data
    finally:
        sock.close()
    return data


async def status_of(stream):
    """The status of the answer to something odd."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await stream.read()
        assert piece, answer
        answer += piece
    return int(answer.split()[1])


async def ended(stream):
    """Reads to the end that the gateway makes."""
    while await stream.read():
        pass
    return True
