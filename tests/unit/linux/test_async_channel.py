"""A channel's end in a loop: nothing waits, nothing is lost or turned round, and every descriptor is closed."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from htcondor_vpn.linux.async_channel import AsyncChannel
from htcondor_vpn.linux.channel import Channel


class End:
    """One end, and what it heard."""

    def __init__(self, channel: Channel) -> None:
        self.heard: list[dict[str, Any]] = []
        self.descriptors: list[int] = []
        self.ended = asyncio.Event()
        self.channel = AsyncChannel(channel, self._hear, self.ended.set)

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self.heard.append(message)
        self.descriptors += descriptors


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def until(done: Any) -> None:
    while not done():
        await asyncio.sleep(0)


def run(body: Any) -> None:
    async def main() -> None:
        one, other = Channel.pair()
        ends = End(one), End(other)
        try:
            await body(*ends)
        finally:
            for end in ends:
                end.channel.close()
                for descriptor in end.descriptors:
                    os.close(descriptor)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_more_than_the_kernel_takes_at_once_keeps_its_order() -> None:
    async def body(one: End, other: End) -> None:
        for number in range(3000):
            one.channel.send({"number": number, "padding": "x" * 1000})
        await until(lambda: len(other.heard) == 3000)
        assert [message["number"] for message in other.heard] == list(range(3000))

    run(body)


def test_a_descriptor_that_was_sent_is_closed_here() -> None:
    async def body(one: End, other: End) -> None:
        read, write = os.pipe()
        one.channel.send({}, [write])
        assert not is_open(write)
        await until(lambda: other.descriptors)
        os.write(other.descriptors[0], b"x")
        assert os.read(read, 10) == b"x"
        os.close(read)

    run(body)


def test_what_was_not_taken_is_dropped_at_the_end() -> None:
    async def body(one: End, other: End) -> None:
        kept = []
        for _ in range(1000):
            kept.append(os.open(os.devnull, os.O_RDONLY))
            one.channel.send({"padding": "x" * 1000}, kept[-1:])
            if is_open(kept[-1]):
                break
        assert is_open(kept[-1])  # it waits
        other.channel.close()
        await one.ended.wait()
        assert not is_open(kept[-1])
        late = os.open(os.devnull, os.O_RDONLY)
        one.channel.send({}, [late])
        assert not is_open(late)

    run(body)


def test_of_too_much_that_waits_the_oldest_is_dropped() -> None:
    async def body(one: End, other: End) -> None:
        one.channel._most_waiting = 10
        for number in range(3000):
            one.channel.send({"number": number, "padding": "x" * 1000})
        await until(lambda: other.heard and other.heard[-1]["number"] == 2999)
        numbers = [message["number"] for message in other.heard]
        assert numbers == sorted(numbers)
        assert numbers[-10:] == list(range(2990, 3000))
        assert 10 < len(numbers) < 3000

    run(body)


@pytest.mark.parametrize("hears", [True, False])
def test_last_words_wait_for_who_hears_them_late_but_not_for_ever(hears: bool) -> None:
    async def body() -> list[dict[str, Any]]:
        one, other = Channel.pair()
        end = End(one)
        for number in range(1000):
            end.channel.send({"number": number, "padding": "x" * 1000})

        def hear() -> list[dict[str, Any]]:
            heard = []
            while (received := other.receive()) is not None:
                heard.append(received[0])
            return heard

        hearing = asyncio.get_running_loop().run_in_executor(None, hear) if hears else None
        end.channel.flush(10 if hears else 0.05)
        end.channel.close()
        heard = await hearing if hearing is not None else []
        other.close()
        return heard

    assert len(asyncio.run(asyncio.wait_for(body(), 60))) == (1000 if hears else 0)


def test_the_last_words_come_before_the_end() -> None:
    async def body(one: End, other: End) -> None:
        for number in range(100):
            one.channel.send({"number": number})
        one.channel.close()
        await other.ended.wait()
        assert len(other.heard) == 100
        assert not one.ended.is_set()  # who closes knows it

    run(body)


def test_too_many_descriptors_under_way_are_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says so (unix(7), ETOOMANYREFS), and not when there are fewer."""
    send, refusals = Channel.send, [errno.ETOOMANYREFS, errno.ENOBUFS]

    def busy(channel: Channel, message: dict[str, Any], descriptors: Any = ()) -> None:
        if refusals:
            raise OSError(refusals.pop(), "busy")
        send(channel, message, descriptors)

    async def body(one: End, other: End) -> None:
        monkeypatch.setattr(Channel, "send", busy)
        one.channel.send({"number": 1})
        one.channel.send({"number": 2})
        await until(lambda: len(other.heard) == 2)
        assert [message["number"] for message in other.heard] == [1, 2]

    run(body)


def test_a_long_message_arrives_whole() -> None:
    one, other = Channel.pair()
    message = {"routes": ["ü" * 150] * 100}
    one.send(message)
    assert other.receive() == (message, [])
    one.close()
    other.close()
