"""Runs on the node: many pilots at once, a flow of each, by our own client. Prints JSON (see `main`).

Usage: inside_node GATEWAY PORT PIN_FILE TARGET TARGET_PORT SECONDS, tokens on the standard input, one a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from ipaddress import ip_address
from pathlib import Path

from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.wire.trust import Trust, read_pins

_SETTLE_SECONDS = 3.0
_AT_ONCE = 10


async def main() -> None:
    """Opens the flows, says "open" and waits for a line; then prints the bytes that each got, -1 if it was refused."""
    host, port, pins, target, target_port, seconds = sys.argv[1:]
    trust = Trust(read_pins(Path(pins)))
    loop = asyncio.get_running_loop()
    counts: dict[int, int] = {}
    slots = asyncio.Semaphore(_AT_ONCE)

    async def receive(number: int, token: str) -> None:
        pilot = Gateway(GatewayConnections(host, int(port), trust, lambda: token))
        try:
            async with slots:
                await pilot.probe()
                stream, early = await pilot.connections.open_flow(ip_address(target), int(target_port))
        except Exception as error:
            print(f"pilot {number}: {error}", file=sys.stderr)
            counts[number] = -1
            return
        counts[number] = len(early)
        while data := await stream.read(64 * 1024):
            counts[number] += len(data)

    tokens = (await loop.run_in_executor(None, sys.stdin.readline)).split()
    receiving = [asyncio.ensure_future(receive(number, token)) for number, token in enumerate(tokens)]
    while len(counts) < len(tokens):
        await asyncio.sleep(0.1)
    await asyncio.sleep(_SETTLE_SECONDS)
    before = dict(counts)
    print("open", flush=True)
    await asyncio.sleep(float(seconds))
    after = dict(counts)
    print(json.dumps([-1 if after[n] < 0 else after[n] - before[n] for n in range(len(tokens))]), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)  # until all is measured that we are needed for
    for task in receiving:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
