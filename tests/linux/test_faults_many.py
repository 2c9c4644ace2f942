"""Very many flows, one after the other and at once, and a gateway that dies again and again."""

import os
import sys

import pytest
from shell_pilot import descendants, fetch, network_of, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.services.oddities import ECHO_PORT

RESTARTS, SHORT_FLOWS, CONCURRENT_FLOWS = 20, 10_000, 500
HTTP = str(plan.WORLD["http"].v4)

#: Usage: FLOWS AT_ONCE BYTES. Each flow sends so many bytes, ends its side, and wants them back; tells how many did.
CLIENT = f"""
import asyncio, collections, os, sys
flows, at_once, size = map(int, sys.argv[1:])

async def flow(slots, all_open):
    async with slots:
        try:
            reader, writer = await asyncio.open_connection({HTTP!r}, {ECHO_PORT})
            if at_once >= flows:
                all_open.discard(asyncio.current_task())
                while all_open: await asyncio.sleep(0.05)
            sent = os.urandom(size)
            writer.write(sent)
            writer.write_eof()
            got = await reader.read()
            writer.close()
            return "good" if got == sent else "wrong"
        except OSError as error:
            all_open.discard(asyncio.current_task())
            return type(error).__name__

async def main():
    slots = asyncio.Semaphore(at_once)
    all_open = set()
    tasks = [asyncio.ensure_future(flow(slots, all_open)) for _ in range(flows)]
    all_open |= set(tasks)
    print(dict(collections.Counter(await asyncio.gather(*tasks))))

asyncio.run(main())
"""


@pytest.fixture
def gateway(sealed, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        yield gateway


@pytest.fixture
def pilot(sealed, services, gateway, start_pilot, tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    pilot = start_pilot(sealed, gateway, tmp_path)
    assert pilot.ask(fetch()) == "1000"
    yield pilot
    pilot.end()


def client(folder, *numbers):
    return " ".join([sys.executable, f"{folder}/client.py", *map(str, numbers)])


def most_descriptors(processes):
    return max(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)


def test_ten_thousand_short_flows(gateway, pilot, tmp_path):
    processes = [*pilot.parts()[:-1], gateway.process.pid, *descendants(gateway.process.pid)]
    assert pilot.ask(client(tmp_path, SHORT_FLOWS, 50, 100), timeout_seconds=300) == f"{{'good': {SHORT_FLOWS}}}"
    wait_until(lambda: pilot.state()["flows"] == 0)
    wait_until(lambda: most_descriptors(processes) < 100)


def test_five_hundred_flows_at_once(pilot, tmp_path):
    said = pilot.ask(client(tmp_path, CONCURRENT_FLOWS, CONCURRENT_FLOWS, 100_000), timeout_seconds=120)
    assert said == f"{{'good': {CONCURRENT_FLOWS}}}"


def test_a_gateway_that_dies_twenty_times(sealed, gateway, pilot):
    def on_the_node():
        return {pid for pid in sealed.processes() if network_of(pid) == network_of(pilot.process.pid)}

    before = on_the_node()
    for _ in range(RESTARTS):
        gateway.stop()
        gateway.start()
        wait_until(lambda: pilot.ask(fetch()) == "1000")
    wait_until(lambda: on_the_node() == before)
