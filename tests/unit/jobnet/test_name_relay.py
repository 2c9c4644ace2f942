"""Names for a job whose host asks its own loopback."""

import asyncio
import socket
import time
from contextlib import ExitStack

from htcondor_vpn.jobnet.name_relay import NameRelay


def test_who_cannot_be_served_for_want_of_descriptors_costs_no_processor(without_descriptors):
    """The broker serves all jobs by one thread."""

    async def body():
        with ExitStack() as exits:
            streams = exits.enter_context(socket.create_server(("127.0.0.1", 0)))
            datagrams = exits.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for sock in (streams, datagrams):
                sock.setblocking(False)
            relay = NameRelay(datagrams, streams, "127.0.0.1")
            exits.callback(relay.close)
            exits.enter_context(socket.create_connection(streams.getsockname()))
            with without_descriptors():
                before = time.process_time()
                await asyncio.sleep(0.5)
                assert time.process_time() - before < 0.1

    asyncio.run(asyncio.wait_for(body(), 60))
