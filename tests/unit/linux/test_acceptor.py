"""Connections are taken as long as there are descriptors, wait where there are none, and are left alone at the end."""

import asyncio
import socket
from contextlib import ExitStack

from htcondor_vpn.linux import acceptor
from htcondor_vpn.linux.acceptor import Acceptor


def play(scene):
    """Runs `scene` with an acceptor, what it has taken, and what makes connections to it."""

    async def run():
        with ExitStack() as exits:
            listener = exits.enter_context(socket.create_server(("127.0.0.1", 0)))
            taken = []
            accepting = Acceptor(listener, lambda sock: taken.append(exits.enter_context(sock)))
            exits.callback(accepting.close)
            await scene(accepting, taken, lambda: exits.enter_context(socket.create_connection(listener.getsockname())))

    asyncio.run(asyncio.wait_for(run(), 60))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_each_is_taken():
    async def scene(_accepting, taken, connect):
        for _ in range(2 * acceptor._AT_ONCE):
            connect()
        await until(lambda: len(taken) == 2 * acceptor._AT_ONCE)
        assert not any(sock.getblocking() for sock in taken)

    play(scene)


def test_they_wait_while_there_are_no_descriptors(without_descriptors, caplog):
    """Without trying again all the time: the loop has others to serve."""

    async def scene(_accepting, taken, connect):
        connect()
        with without_descriptors():
            await until(lambda: "connections wait" in caplog.text)
            await asyncio.sleep(2.5 * acceptor._PAUSE_SECONDS)
            assert not taken
        assert caplog.text.count("connections wait") == 1
        await until(lambda: taken)

    play(scene)


def test_none_is_taken_after_the_end_though_it_was_waiting_then(without_descriptors, caplog):
    async def scene(accepting, taken, connect):
        connect()
        with without_descriptors():
            await until(lambda: "connections wait" in caplog.text)
            accepting.close()
        await asyncio.sleep(2 * acceptor._PAUSE_SECONDS)
        assert not taken

    play(scene)
