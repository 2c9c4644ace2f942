"""When a gateway for packets says that it drains: not before nobody can get in any more."""

import asyncio
import os
import signal

import pytest

from htcondor_vpn import errors
from htcondor_vpn.gateway.operation.control import Connection
from htcondor_vpn.packet_gateway.operation import Operation
from htcondor_vpn.packet_gateway.sessions import Reading
from htcondor_vpn.settings import Settings

READING = Reading("key", "alice", "192.0.2.7:4000", "198.18.128.1", 0, 0)


@pytest.fixture
def settings(tmp_path):
    return Settings.load(overrides={"HTCONDOR_VPN_GATEWAY_DIR": str(tmp_path)})


async def ask(settings, what):
    def speak():
        with Connection(settings.gateway_dir) as gateway:
            return gateway.ask({"do": what})

    return await asyncio.get_running_loop().run_in_executor(None, speak)


async def test_not_before_it_is_shut(settings):
    operation = Operation(settings, "wireguard")
    begun, shut = asyncio.Event(), asyncio.Event()

    async def shut_it():
        begun.set()
        await shut.wait()
        operation.sessions.told([READING], {"alice"})

    operation.ready(shut_it)
    serving = asyncio.ensure_future(operation.serve([]))
    answers = [asyncio.ensure_future(ask(settings, "drain")) for _ in range(2)]
    await begun.wait()
    assert (await ask(settings, "status"))["draining"] is False
    assert not any(answer.done() for answer in answers)
    shut.set()
    assert [answer["flows"] for answer in await asyncio.gather(*answers)] == [1, 1]
    assert (await ask(settings, "status"))["draining"] is True
    assert not operation.stop.is_set()
    operation.sessions.told([], {"alice"})
    await serving
    operation.close()


@pytest.mark.parametrize("fails", [True, False])
async def test_one_whose_work_ends_says_so(settings, fails):
    """What it is made of never ends by itself; but a namespace may be lost."""
    operation, cancelled = Operation(settings, "wireguard"), asyncio.Event()

    async def goes_on():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def ends():
        if fails:
            raise errors.ListenError("the port is taken", "choose another one")

    with pytest.raises(errors.ListenError if fails else errors.NamespacesUnavailable):
        await operation.serve([goes_on(), ends()])
    assert cancelled.is_set()
    operation.close()


async def test_one_that_cannot_be_shut_goes_on_as_it_was(settings):
    operation = Operation(settings, "ocserv")
    failures = [errors.GatewayFolderError("no room", "check the disk")]

    async def shut():
        if failures:
            raise failures.pop()

    operation.ready(shut)
    assert "no room" in (await ask(settings, "drain"))["error"]
    assert (await ask(settings, "status"))["draining"] is False
    assert (await ask(settings, "drain"))["flows"] == 0
    assert (await ask(settings, "status"))["draining"] is True
    operation.close()


async def test_one_that_does_not_serve_yet_ends(settings):
    operation = Operation(settings, "wireguard")
    os.kill(os.getpid(), signal.SIGUSR1)
    await operation.stop.wait()
    operation.close()
