"""The processes of a gateway: one that dies takes its own flows with it and no more, and limits hold over all."""

import asyncio
import json
import os
import signal

import pytest
from gateway_flows import PATIENCE_SECONDS, Refused, echo_server, echoes, operated, run, until
from shell_pilot import wait_until

STATE = "/.well-known/htcondor-vpn"


@pytest.fixture
def start(site, tmp_path):
    with operated(site, tmp_path) as start:
        yield start


async def alive(stream):
    try:
        return await echoes(stream)
    except (OSError, AssertionError):
        return False


async def flows_in_both(gateway, client, count=24):
    """So many flows, or as many as it takes until each worker has some: one that is held up takes none."""
    streams = [await client.flow() for _ in range(count)]
    while not all(worker["flows"] for worker in gateway.status()["workers"]):
        streams.append(await client.flow())
    return streams


def test_a_killed_worker_takes_its_own_flows_only_and_is_replaced(site, start):
    gateway, client = start()

    async def body():
        async with echo_server(site):
            streams = await flows_in_both(gateway, client)
            victim, other = gateway.workers()
            os.kill(victim, signal.SIGKILL)
            await until(lambda: victim not in gateway.workers() and len(gateway.workers()) == 2)
            living = [stream for stream in streams if await alive(stream)]
            assert 0 < len(living) < len(streams)
            assert other in gateway.workers()
            fresh = await client.flow()
            assert await echoes(fresh)
            await until(lambda: gateway.status()["flows"] == len(living) + 1)
            for stream in [*streams, fresh]:
                stream.abort()
            await until(lambda: gateway.status()["connections"] == 0)

    run(body())
    assert "signal 9" in gateway.log.read_text()


def test_a_stopped_worker_takes_no_connections_and_is_replaced(site, start):
    """Its flows are reset and do not hang, and what it had told of them stays counted."""
    gateway, client = start()

    async def body():
        async with echo_server(site):
            streams = await flows_in_both(gateway, client)
            count = len(streams)
            for stream in streams:
                assert await echoes(stream, b"x" * 1000)
            await until(lambda: gateway.status()["bytes_up"] == 1000 * count)
            await until(lambda: [row["flows"] for row in gateway.ledger()] == [count])  # it knows of those that run
            victim, other = gateway.workers()
            doomed = next(each["flows"] for each in gateway.status()["workers"] if each["pid"] == victim)
            assert 0 < doomed < count
            os.kill(victim, signal.SIGSTOP)
            for _ in range(12):
                streams.append(await client.flow())
                assert await echoes(streams[-1], b"x" * 1000)
            await until(lambda: victim not in gateway.workers() and len(gateway.workers()) == 2)
            assert other in gateway.workers()
            assert [await alive(stream) for stream in streams].count(False) == doomed
            await until(lambda: gateway.status()["flows"] == count + 12 - doomed)
            await until(lambda: gateway.status()["bytes_up"] >= 1000 * (count + 12))
            for stream in streams:
                stream.abort()
            await until(lambda: gateway.status()["connections"] == 0)
            lost = {("worker_lost", doomed)}
            await until(lambda: lost <= {(row["outcome"], row["flows"]) for row in gateway.ledger()})

    run(body())
    assert "stopped or stuck" in gateway.log.read_text()


def test_a_gateway_that_was_stopped_as_a_whole_goes_on(site, start):
    gateway, client = start()
    workers = gateway.workers()

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            assert await echoes(stream)
            everyone = [gateway.process.pid, *gateway.children()]
            for number, pause_seconds in ((signal.SIGSTOP, 12), (signal.SIGCONT, 3)):
                for pid in everyone:
                    os.kill(pid, number)
                await asyncio.sleep(pause_seconds)  # that it lasts is the experiment
            assert await echoes(stream)
            stream.abort()

    run(body())
    assert gateway.workers() == workers


@pytest.mark.parametrize(("knob", "status"), [("CONNECTIONS_PER_TOKEN", 429), ("CONNECTIONS", 503)])
def test_a_limit_holds_over_all_workers(site, start, knob, status):
    _, client = start(**{knob: 10})

    async def body():
        async with echo_server(site):
            outcomes = await asyncio.gather(*(client.flow() for _ in range(16)), return_exceptions=True)
            refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
            assert {error.status for error in refused} == {status}
            streams = [outcome for outcome in outcomes if not isinstance(outcome, Refused)]
            assert len(streams) == 10 if knob == "CONNECTIONS_PER_TOKEN" else len(streams) <= 10
            for stream in streams:
                stream.abort()

    run(body())


def test_revoking_cuts_the_flows_of_all_workers(site, start):
    gateway, client = start()
    token = gateway.token("add", "brief").strip()

    async def body():
        async with echo_server(site):
            doomed = [await client.flow(token=token) for _ in range(12)]
            kept = await client.flow()
            gateway.token("revoke", "brief")
            for stream in doomed:
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(stream.read(), 60)
            assert await echoes(kept)
            kept.abort()

    run(body())


def test_a_restart_loses_nothing(site, start):
    """New flows are made without end while the program is replaced twice; and one flow outlives both."""
    gateway, client = start()
    pid = gateway.process.pid

    async def body():
        async with echo_server(site):
            long, counts, over = await client.flow(), [], asyncio.Event()

            async def new_flows():
                while not over.is_set():
                    stream = await client.flow()
                    counts.append(await echoes(stream))
                    stream.abort()

            making = asyncio.ensure_future(new_flows())
            loop = asyncio.get_running_loop()
            for generation in (2, 3):
                before = len(counts)
                await loop.run_in_executor(None, lambda: gateway.operate("restart"))
                await until(lambda before=before: len(counts) > before or making.done())
                assert gateway.status()["generation"] == generation
                assert await echoes(long)
            over.set()
            await making
            assert gateway.status()["pid"] == pid
            await until(lambda: [each["retired"] for each in gateway.status()["workers"]].count(True) == 1)
            await long.close()
            await until(lambda: len(gateway.workers()) == 2)

    run(body())


def test_a_restart_into_bad_settings_does_not_happen(site, start):
    gateway, client = start()
    with open(gateway.folder / "gateway.conf", "a") as file:
        file.write("HTCONDOR_VPN_GATEWAY_CONNECTIONS = many\n")
    refused = gateway.operate("restart", check=False)
    assert refused.returncode == 90
    assert "HTCONDOR_VPN_GATEWAY_CONNECTIONS" in refused.stderr

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            assert await echoes(stream)
            stream.abort()

    run(body())


def test_a_drain_ends_with_the_last_flow(site, start):
    gateway, client = start()

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            gateway.operate("drain")
            with pytest.raises(Refused) as refused:
                await client.flow()
            assert refused.value.status == 503
            connection, answer = await client.ask("GET", STATE)
            assert json.loads(answer.body)["draining"]
            connection.stream.abort()
            assert await echoes(stream)
            await stream.close()

    run(body())
    assert gateway.process.wait(PATIENCE_SECONDS) == 0


def test_a_drain_with_a_timeout_ends_by_then(site, start):
    gateway, client = start()

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            gateway.operate("drain", "--timeout", "0.5s", "--wait")
            with pytest.raises(ConnectionResetError):
                await stream.read()

    run(body())
    assert gateway.process.wait(PATIENCE_SECONDS) == 0


def test_a_killed_gateway_leaves_no_process_and_a_ledger(site, start):
    gateway, client = start()
    children = wait_until(lambda: len(found := gateway.children()) == 3 and found)

    async def body():
        async with echo_server(site):
            ended, running = await client.flow(), await client.flow()
            await echoes(ended, b"x" * 1000)
            await ended.close()
            await echoes(running, b"x" * 2000)
            told = {("closed", 1000), ("", 2000)}
            await until(lambda: {(row["outcome"], row["bytes_up"]) for row in gateway.ledger()} == told)
            gateway.stop()
            await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))
        gateway.start()
        told = {("closed", 1000), ("gateway_lost", 2000)}
        await until(lambda: {(row["outcome"], row["bytes_up"]) for row in gateway.ledger()} == told)

    run(body())
    assert [row["flows"] for row in gateway.ledger("pilot")] == [2]
    assert "203.0.113.20:7007/tcp" in gateway.operate("ledger", "--by", "destination", "--since", "1h").stdout


def test_a_killed_ledger_is_written_on(site, start):
    gateway, client = start()
    (writer,) = set(gateway.children()) - set(gateway.workers())
    os.kill(writer, signal.SIGKILL)

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            await echoes(stream)
            await stream.close()
            await until(lambda: [(row["outcome"], row["bytes_up"]) for row in gateway.ledger()] == [("closed", 1000)])

    run(body())
    assert writer not in gateway.children()
    wait_until(lambda: gateway.status()["ledger"] == {"waiting": 0, "lost": 0, "error": ""})


def test_a_stopped_ledger_goes_on_and_lacks_nothing(site, start):
    gateway, client = start()
    (writer,) = set(gateway.children()) - set(gateway.workers())

    async def body():
        async with echo_server(site):
            os.kill(writer, signal.SIGSTOP)
            stream = await client.flow()
            await echoes(stream)
            await stream.close()
            await until(lambda: [(row["outcome"], row["bytes_up"]) for row in gateway.ledger()] == [("closed", 1000)])

    run(body())
    assert writer in gateway.children()
    wait_until(lambda: gateway.status()["ledger"] == {"waiting": 0, "lost": 0, "error": ""})


def test_a_gateway_that_ends_has_a_stopped_ledger_write_and_end(site, start):
    gateway, client = start()
    (writer,) = set(gateway.children()) - set(gateway.workers())

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            await echoes(stream)
            await stream.close()
            await until(lambda: gateway.status()["flows_ended"] == 1)
            os.kill(writer, signal.SIGSTOP)
            gateway.process.terminate()
            assert gateway.process.wait(PATIENCE_SECONDS) == 0
            assert not os.path.exists(f"/proc/{writer}")

    run(body())
    assert [(row["outcome"], row["bytes_up"]) for row in gateway.ledger()] == [("closed", 1000)]


def test_the_pilots_are_shown(site, start):
    gateway, client = start()

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            await echoes(stream, b"x" * 50_000)
            await until(lambda: gateway.status()["bytes_up"] == 50_000)
            await until(lambda: gateway.status()["pilots"]["pilot"]["bytes_down"] == 50_000)
            assert gateway.status()["pilots"]["pilot"]["flows"] == 1
            assert "pilot" in gateway.operate("status").stdout
            stream.abort()

    run(body())


def test_no_gateway_no_status(site, start):
    gateway, _ = start()
    gateway.stop()
    assert gateway.operate("status", check=False).returncode == 90
