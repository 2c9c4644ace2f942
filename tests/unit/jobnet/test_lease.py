from __future__ import annotations

import asyncio
import os

import pytest

from htcondor_vpn.addresses import MAX_JOBS
from htcondor_vpn.jobnet.lease import Lease, Leases
from htcondor_vpn.jobnet.lease_making import make_lease
from htcondor_vpn.jobnet.protocol import Message
from htcondor_vpn.linux.peers import Peer, Watched


def lease(number: int) -> Lease:
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    return Lease(number, namespace, Watched(os.getpid()), Watched(os.getppid()))


def test_numbers_are_used_again_as_late_as_possible() -> None:
    leases = Leases()
    assert [leases.free_number(), leases.free_number()] == [0, 1]
    leases.without_lease |= {2, 3}
    assert leases.free_number() == 4


def test_numbers_of_two_kinds_of_jobs_do_not_touch() -> None:
    leases, low, high = Leases(), range(2), range(2, 4)
    assert [leases.free_number(low), leases.free_number(high), leases.free_number(low)] == [0, 2, 1]
    leases.reserved |= {0, 1, 2}
    assert leases.free_number(high) == 3
    with pytest.raises(IndexError):
        leases.free_number(low)


def test_number_comes_back_when_its_links_are_gone() -> None:
    leases = Leases()
    leases.without_lease = set(range(MAX_JOBS))
    with pytest.raises(IndexError):
        leases.free_number()
    leases.without_lease.discard(77)
    assert leases.free_number() == 77


def test_lease_is_found_by_all_that_names_it() -> None:
    leases, first, second = Leases(), lease(0), lease(1)
    leases.add(first)
    leases.add(second)
    assert leases.of_number(1) is second
    assert leases.of_network(first.network) is first
    assert leases.of_starter(os.getppid()) is second
    assert leases.of_starter(0) is None
    leases.remove(second)
    assert second not in leases
    assert leases.without_lease == {1}
    first.close()
    second.close()


def test_close_lets_go_of_everything() -> None:
    async def main() -> None:
        one = lease(0)
        descriptors = [one.namespace, one.wrapper.fileno()]
        one.grace = asyncio.get_running_loop().call_later(100, print)
        one.close()
        assert one.grace.cancelled()
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)

    asyncio.run(main())


def test_a_starter_that_cannot_be_held_costs_no_descriptor() -> None:
    """For whatever reason: here the kernel takes its number for none."""
    peer, before = Peer(os.getpid(), os.getuid(), -5, 0), os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Invalid argument"):
        make_lease(None, 0, -1, None, peer, Message("start"))  # type: ignore[arg-type]
    assert os.listdir("/proc/self/fd") == before
