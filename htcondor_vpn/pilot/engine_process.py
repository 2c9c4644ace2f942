"""The engine's process: in the host's network, with the sockets of the inner one.

It never waits for its supervisor, which may be stopped while flows go on: what that does not take is told anew later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from htcondor_vpn.linux.ancestry import Identity
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.heartbeat import BEAT_SECONDS
from htcondor_vpn.tunnel.engine import Engine, InnerSockets

#: asyncio.wait_for can lose a cancellation, below Python 3.12.
_CANCEL_SECONDS = 0.5


def run_engine(channel: Channel, make_engine: Callable[[], Engine], sockets: InnerSockets | None) -> Identity | None:
    """Runs the engine that `make_engine` makes until the supervisor is gone.

    Sends its reports as {"report": …}, and every second {"lives": true}.
    Serves `sockets`, or those that come with a message {"kinds": …, "inner": …}; returns the latter, the identity of
    the inner user namespace, if that message came.
    """
    # Not asyncio.run, which would wait for a look-up that hangs in a name server's silence.
    channel.sock.setblocking(False)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_run(channel, make_engine, sockets))
    finally:
        loop.close()
        channel.sock.setblocking(True)


async def _run(channel: Channel, make_engine: Callable[[], Engine], sockets: InnerSockets | None) -> Identity | None:
    inner: Identity | None = None
    engine = make_engine()  # here, since events and locks belong to the loop that they are made in, below Python 3.10
    if sockets is not None:
        engine.serve(sockets)
    work = asyncio.ensure_future(engine.run(lambda report: _tell(channel, {"report": report.message()})))
    asyncio.ensure_future(_live(channel))

    ended = asyncio.Event()

    def told() -> None:
        nonlocal inner
        try:
            received = channel.receive()
        except BlockingIOError:
            return
        if received is None:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            ended.set()
        else:
            message, descriptors = received
            engine.serve(InnerSockets.adopt(descriptors, message["kinds"]))
            inner = tuple(message["inner"])

    asyncio.get_running_loop().add_reader(channel.fileno(), told)
    waiting = asyncio.ensure_future(ended.wait())
    await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    await engine.finish()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_CANCEL_SECONDS)
    return inner


async def _live(channel: Channel) -> None:
    while True:
        _tell(channel, {"lives": True})
        await asyncio.sleep(BEAT_SECONDS)


def _tell(channel: Channel, message: dict[str, Any]) -> None:
    try:
        channel.send(message)
    except (BlockingIOError, ConnectionError):  # a reset where it left something unread
        return  # the supervisor is stopped, or gone; the end of the channel says the latter as well
