"""The engine's process and its supervisor: neither has to wait for the other."""

import asyncio
import threading

from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.pilot.engine_process import run_engine
from htcondor_vpn.tunnel.engine import EngineReport

_PATIENCE_SECONDS = 20


class Talkative:
    """See `Engine`: reports very often."""

    def __init__(self):
        self.told = threading.Event()

    async def run(self, report):
        for _ in range(10_000):
            report(EngineReport(up=True))
        self.told.set()
        await asyncio.Event().wait()

    def serve(self, sockets):
        raise AssertionError("nobody has said what to serve")

    async def finish(self):
        return


def test_an_engine_does_not_wait_for_a_supervisor_that_is_stopped():
    supervisor, channel = Channel.pair()
    engine = Talkative()
    thread = threading.Thread(target=run_engine, args=(channel, lambda: engine, None), daemon=True)
    thread.start()
    assert engine.told.wait(_PATIENCE_SECONDS)
    supervisor.close()
    thread.join(_PATIENCE_SECONDS)
    assert not thread.is_alive()
    channel.close()


def test_an_engine_says_that_it_lives_though_it_has_nothing_to_report():
    class Silent(Talkative):
        async def run(self, report):
            await asyncio.Event().wait()

    supervisor, channel = Channel.pair()
    thread = threading.Thread(target=run_engine, args=(channel, Silent, None), daemon=True)
    thread.start()
    supervisor.sock.settimeout(_PATIENCE_SECONDS)
    assert [supervisor.receive() for _ in range(2)] == 2 * [({"lives": True}, [])]
    supervisor.close()
    thread.join(_PATIENCE_SECONDS)
    channel.close()


def test_an_engine_outlives_a_supervisor_that_left_something_unread():
    """It ends in order then, and clears up: the kernel tells of such an end by a reset, and once."""
    finished = threading.Event()

    class Bereaved(Talkative):
        async def run(self, report):
            report(EngineReport(up=True))
            supervisor.close()
            report(EngineReport(up=True))
            await asyncio.Event().wait()

        async def finish(self):
            finished.set()

    supervisor, channel = Channel.pair()
    thread = threading.Thread(target=run_engine, args=(channel, Bereaved, None), daemon=True)
    thread.start()
    assert finished.wait(_PATIENCE_SECONDS)
    thread.join(_PATIENCE_SECONDS)
    channel.close()
