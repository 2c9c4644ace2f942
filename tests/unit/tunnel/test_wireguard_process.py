"""A running wireguard-go, as the engine holds it: here any program in its place, of which only the end counts."""

import asyncio
import fcntl
import os
import resource
import signal
import socket
import subprocess

import pytest

from htcondor_vpn.linux.wireguard_go import Started
from htcondor_vpn.tunnel.carriers.wireguard_process import WireguardProcess

BEYOND_SELECT = 1024


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * BEYOND_SELECT), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_engine_with_many_flows_can_end_it(many_descriptors):
    """Its descriptors lie beyond those that select(2) knows then."""

    async def body():
        with subprocess.Popen(["sleep", "600"]) as process:
            low = os.pidfd_open(process.pid)
            high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, BEYOND_SELECT)
            os.close(low)
            (listener, asks), (log, says), (control, device) = os.pipe(), os.pipe(), socket.socketpair()
            running = WireguardProcess(Started(high, listener, log, control.detach()), "wg.example:51820")
            try:
                running.end()
            finally:
                process.kill()
                os.close(asks)
                os.close(says)
                device.close()
            assert running.ended.done()
            assert process.wait() == -signal.SIGKILL

    asyncio.run(body())
