"""The engine's process: in the host's network, with the sockets of the inner one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from htcondor_vpn.linux.ancestry import Identity
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.tunnel.engine import Engine, EngineReport, InnerSockets

#: asyncio.wait_for can lose a cancellation, below Python 3.12.
_CANCEL_SECONDS = 0.5


def run_engine(channel: Channel, make_engine: Callable[[], Engine], sockets: InnerSockets | None) -> Identity | None:
    """Runs the engine that `make_engine` makes until the supervisor is gone. Sends its reports as {"report": …}.

    Serves `sockets`, or those that come with a message {"kinds": …, "inner": …}; returns the latter, the identity of
    the inner user namespace, if that message came.
    """
    # Not asyncio.run, which would wait for a look-up that hangs in a name server's silence.
    return asyncio.new_event_loop().run_until_complete(_run(channel, make_engine, sockets))


async def _run(channel: Channel, make_engine: Callable[[], Engine], sockets: InnerSockets | None) -> Identity | None:
    inner: Identity | None = None
    engine = make_engine()  # here, since events and locks belong to the loop that they are made in, below Python 3.10
    if sockets is not None:
        engine.serve(sockets)
    work = asyncio.ensure_future(engine.run(lambda report: _tell(channel, report)))

    ended = asyncio.Event()

    def told() -> None:
        nonlocal inner
        received = channel.receive()
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


def _tell(channel: Channel, report: EngineReport) -> None:
    try:
        channel.send({"report": report.message()})
    except BrokenPipeError:
        return  # the supervisor is gone; the end of the channel says so as well
