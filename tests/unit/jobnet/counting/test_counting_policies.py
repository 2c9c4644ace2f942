"""Which chains there are: shared, made once, made anew when a name's addresses change, and removed when idle."""

import asyncio
import errno
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from htcondor_vpn.jobnet.counting import addresses as address_module
from htcondor_vpn.jobnet.counting import policies as module
from htcondor_vpn.jobnet.counting.addresses import Addresses
from htcondor_vpn.jobnet.counting.policies import Policies, Reach
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.destinations import parse_destination
from htcondor_vpn.jobnet.policy.look_ups import LookUps
from htcondor_vpn.linux.netlink import NetlinkError


class Table:
    """Remembers what it was told; the kernel's own is tested by tests/linux/test_jobnet_counting.py."""

    def __init__(self):
        self.ran, self.led, self.removed, self.changed = [], {}, [], []

    def run(self, rules):
        self.ran.append(rules)

    def lead(self, number, chain):
        if not any(f" {chain}_sent" in rules for rules in self.ran):
            raise NetlinkError(errno.ENOENT, "no such chain")
        self.led[number] = chain

    def remove_policies(self, chains):
        self.removed += chains

    async def change(self, numbers, networks):
        self.changed.append((set(numbers), {str(network) for network in networks}))


@pytest.fixture
def addresses(monkeypatch):
    """What the names of policies have for addresses; they are looked up all the time."""
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)
    return {"storage.example.org": ["192.0.2.1"]}


@pytest.fixture
def scenario(addresses):
    """Runs a test's coroutine with policies and their table."""

    def look_up(name, _):
        if not addresses.get(name):
            raise OSError(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in addresses[name]]

    def play(work):
        async def playing():
            table, threads = Table(), ThreadPoolExecutor(1)
            policies = Policies(table, threads, table.change, Addresses(LookUps(5, look_up)))
            policies.open()
            await work(policies, table)
            policies.close()
            threads.shutdown()

        asyncio.run(playing())

    return play


def allowing(*texts):
    return Decision(allowed=tuple(map(parse_destination, texts)))


async def until(condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.005)  # what happens in another task tells nobody

    await asyncio.wait_for(wait(), 60)


def test_jobs_share_a_chain(scenario):
    async def work(policies, table):
        decision = allowing("192.0.2.0/24")
        chains = await asyncio.gather(*(policies.lead(number, decision) for number in range(5)))
        assert len(set(chains)) == 1
        assert table.led == dict.fromkeys(range(5), chains[0])
        assert len(table.ran) == 1
        assert await policies.lead(5, Decision()) != chains[0]

    scenario(work)


def test_a_names_new_address_is_allowed_and_the_one_before_for_a_while(scenario, addresses, monkeypatch):
    async def work(policies, table):
        decision = allowing("storage.example.org tcp port 1094")
        await policies.lead(1, replace(decision, classes={"campus": (parse_destination("192.0.2.1"),)}))
        assert "192.0.2.1/32 } tcp dport 1094" in table.ran[-1]
        addresses["storage.example.org"] = ["192.0.2.2"]
        await until(lambda: len(table.ran) == 2)
        assert "192.0.2.1/32, 192.0.2.2/32" in table.ran[-1]
        monkeypatch.setattr(address_module, "KEPT_SECONDS", 0.0)
        await until(lambda: len(table.ran) > 2)
        assert "192.0.2.1/32" not in table.ran[-1]
        await until(lambda: len(table.changed) >= 2)
        assert table.changed[:2] == [({1}, {"192.0.2.2/32"}), ({1}, {"192.0.2.1/32"})]

    scenario(work)


def test_a_name_without_an_address_allows_nothing_and_says_so(scenario, caplog):
    async def work(policies, table):
        with caplog.at_level(logging.WARNING):
            chain = await policies.lead(1, allowing("gone.example.org"))
        sent = [line for line in table.ran[-1].splitlines() if line.startswith("add rule") and f"{chain}_sent" in line]
        assert sent[-1].endswith("goto refuse")
        assert f"{{ 0.0.0.0-0.0.0.0 : goto {chain}_classes, 0.0.0.1-126.255.255.255 : goto refuse, " in sent[0]
        assert "gone.example.org" in caplog.text

    scenario(work)


def test_idle_chains_are_kept_for_the_next_job_but_not_all(scenario, monkeypatch):
    monkeypatch.setattr(module, "_MOST_IDLE", 2)

    async def work(policies, table):
        for number in range(5):
            await policies.lead(number, allowing(f"192.0.2.{number}"))
        policies.leave(range(4))
        await until(lambda: len(table.removed) == 2)
        assert table.removed == [table.led[0], table.led[1]]
        before = len(table.ran)
        await policies.lead(9, allowing("192.0.2.3"))
        assert len(table.ran) == before
        await policies.lead(10, allowing("192.0.2.0"))
        assert len(table.ran) == before + 1

    scenario(work)


def test_a_chain_that_is_not_there_any_more_is_made_again(scenario):
    async def work(policies, table):
        decision = allowing("192.0.2.0/24")
        policies.resume({Reach.of(decision).chain: Reach.of(decision).message()}, {})
        await policies.lead(1, decision)
        assert len(table.ran) == 1
        await policies.lead(2, decision)
        assert len(table.ran) == 1

    scenario(work)
