"""The network namespace of a packet VPN: its sockets, its one way out, and that nothing of it is left."""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.logs import wait_for_log

CLIENT = Path(__file__).with_name("tun_namespace_client.py")


@pytest.fixture(scope="module")
def seen(site, tmp_path_factory):
    log = tmp_path_factory.mktemp("tun") / "log"
    log.touch()
    before = set(site.processes())
    process = site.node.start([sys.executable, "-W", "error", str(CLIENT), find_program("ip", "iproute2")], log=log)
    try:
        wait_for_log(log, b"^holding$", process, timeout_seconds=60)
        alive = set(site.processes()) - before
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        deadline = time.monotonic() + 60
        while (left := set(site.processes()) - before) and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
    finally:
        process.kill()
        process.wait(60)
    seen = next(json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return {**seen, "alive": alive, "left": left}


def test_what_is_routed_comes_out_of_the_tun(seen):
    assert (seen["routed"], seen["routed6"]) == ("sent", "sent")
    assert seen["packet"] == [4, "10.8.0.7", "203.0.113.20", "hello"]
    assert seen["packet6"] == [6, "fd08::7", "2001:db8:1::20", "hello"]


def test_what_is_not_routed_is_refused_by_the_kernel(seen):
    assert (seen["unrouted"], seen["refused"]) == ("ENETUNREACH", "EHOSTUNREACH")


def test_there_is_nothing_but_the_tun(seen):
    assert seen["interfaces"] == {"lo": ["127.0.0.1", "::1"], "tun0": ["10.8.0.7", "fd08::7"]}


def test_connections_are_reset_when_it_is_closed(seen):
    assert seen["cut"] == "ECONNRESET"
    assert seen["closed"] == "the tun's namespace is gone"


def test_sockets_are_cheap(seen):
    assert seen["us"] < 5000


def test_nothing_outlives_who_made_it(seen):
    assert len(seen["alive"]) == 3  # it, and the processes of two namespaces
    assert seen["left"] == set()


_SIGNALLED = """
import asyncio, os, signal, socket
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    room = await TunNamespace.make()
    os.kill(room._pid, signal.SIGTERM)
    (await room.open(socket.AF_INET, socket.SOCK_DGRAM)).close()
    room.close()
    print("done", flush=True)

asyncio.run(main())
"""


def test_a_signal_to_all_of_us_is_none_to_its_process(site, tmp_path):
    """As timeout(1) sends it. The process ends with its maker, who has to tidy up before."""
    log = tmp_path / "log"
    log.touch()
    process = site.node.start([sys.executable, "-W", "error", "-c", _SIGNALLED], log=log)
    wait_for_log(log, b"^done$", process)
    assert process.wait(60) == 0
    assert log.read_text() == "done\n"
