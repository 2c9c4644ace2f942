"""A gateway whose disk is full: flows go on, it can be restarted, and who is to be cut off is."""

import re

import pytest
from gateway_flows import Client, OperatedGateway, echo_server, echoes, run, until


@pytest.fixture
def on_a_small_disk(site, tmp_path):
    """A gateway whose folder is on one, a pilot's side, and what leaves no room on it, or with False some."""
    disk, pin = tmp_path / "disk", tmp_path / "pin"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=777", "none", str(disk)]
    site.dmz.run(mount, as_root=True, check=True)
    site.dmz.run(["mkdir", "--mode=700", f"{disk}/gateway"], check=True)
    (tmp_path / "gateway").symlink_to(disk / "gateway")

    def fill(full=True):
        if full:
            said = site.dmz.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=4k"]).stderr
            assert "No space left" in said
        else:
            site.dmz.run(["rm", f"{disk}/filler"], check=True)

    with OperatedGateway(site, tmp_path) as gateway:
        pin.write_text(gateway.operate("pin").stdout)
        gateway.pin_file = pin
        client = Client(site, gateway)
        yield gateway, client, fill
        client.close()
    site.dmz.run(["umount", "--lazy", str(disk)], as_root=True, check=True)


def test_a_full_disk_is_no_reason_to_lose_a_flow(site, on_a_small_disk):
    """Nor is a restart then, but that the ledger lacks what waits; it is written again when there is room again."""
    gateway, client, fill = on_a_small_disk

    async def body():
        async with echo_server(site):
            before = await client.flow()
            assert await echoes(before)
            fill()
            for _ in range(3):
                stream = await client.flow()
                assert await echoes(stream)
                await stream.close()
            await until(lambda: "full" in gateway.status()["ledger"]["error"])
            gateway.operate("restart")
            assert gateway.status()["generation"] == 2
            assert await echoes(before)
            last = await client.flow()
            assert await echoes(last)
            await last.close()
            fill(False)
            await until(lambda: ("closed", 1) in {(row["outcome"], row["flows"]) for row in gateway.ledger()})

    run(body())
    assert re.search(r"the ledger lacks \d+ flows", gateway.log.read_text())


def test_a_token_is_revoked_on_a_full_disk(site, on_a_small_disk):
    gateway, client, fill = on_a_small_disk
    for number in range(3):
        gateway.token("add", f"other{number}")

    async def body():
        async with echo_server(site):
            stream = await client.flow()
            assert await echoes(stream)
            fill()
            gateway.token("revoke", "pilot")
            with pytest.raises(ConnectionError):
                await stream.read()

    run(body())
    gateway.stop()  # so that there is nothing any more that SQLite has made before
    for number in range(3):
        fill(False)
        fill()
        gateway.token("revoke", f"other{number}")
    fill(False)
    assert len(gateway.token("list").splitlines()) == 1
