"""Carriers that are told what they are, and pools of them."""

import asyncio
from ipaddress import ip_address

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Answer
from htcondor_vpn.tunnel.members import Lone
from htcondor_vpn.tunnel.pool import Pool

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


class Fake:
    """A carrier whose probes say what `state` is: families, or an error."""

    start_seconds = 0.0

    def __init__(self, name, state=("ipv4", "ipv6"), **told):
        self.name, self.state, self.told, self.flows = name, state, told, 0
        self.unreachable = False
        self.silent = self.forgotten = False

    async def open_flow(self, address, port):
        if self.unreachable:
            raise GatewayUnreachable(f"{self.name} is not there")
        if self.silent:
            await asyncio.Event().wait()
        self.flows += 1
        return self.name, b""

    async def ask_dns(self, query):
        return query

    async def probe(self):
        if isinstance(self.state, VpnError):
            raise self.state
        self.forgotten = False
        return Answer(self.state, 1.0, **self.told)

    async def lost(self):
        await asyncio.Event().wait()

    def forget(self):
        self.forgotten = True


class Changing:
    """A member whose carriers are what `now` says, or the error that it is."""

    name, weight = "name:1", 1.0

    def __init__(self, *now):
        self.now = list(now)

    async def look_up(self):
        if isinstance(self.now, VpnError):
            raise self.now
        return list(self.now)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Running:
    """A pool that runs; `until` waits for something to become true after one of its changes."""

    def __init__(self, *carriers):
        members = [carrier if hasattr(carrier, "look_up") else Lone(carrier) for carrier in carriers]
        self.pool = Pool("fake", members, 0.01, 1)
        self.changed = asyncio.Event()

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self.pool.run(lambda _: self.changed.set()))
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, wanted):
        while not wanted():
            self.changed.clear()
            await self.changed.wait()


def healthy(pool):
    return [known.carrier.name for known in pool.healthy()]
