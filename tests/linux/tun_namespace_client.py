"""Uses a tun namespace on a host, as an ordinary user, and prints what it saw as JSON."""

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address, ip_network

from htcondor_vpn.tunnel.carriers.tun_namespace import TunConfig, TunNamespace

CONFIG = TunConfig(
    mtu=1400,
    addresses=(ip_address("10.8.0.7"), ip_address("fd08::7")),
    routes=(ip_network("203.0.113.0/24"), ip_network("2001:db8:1::/64")),
    refused=(ip_network("203.0.113.128/25"),),
)
ROUNDS, COUNT = 5, 200


async def packet(tun):
    readable = asyncio.Event()
    asyncio.get_running_loop().add_reader(tun, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), 60)
        return os.read(tun, 2048)
    finally:
        asyncio.get_running_loop().remove_reader(tun)


def attempt(sock, *address):
    try:
        sock.connect(address)
        sock.send(b"hello")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "sent"


async def main():
    loop = asyncio.get_running_loop()
    seen = {}
    room = await TunNamespace.make()
    tun = await room.make_tun("tun0")
    await room.configure("tun0", CONFIG)

    v4 = await room.open(socket.AF_INET, socket.SOCK_DGRAM)
    seen["routed"] = attempt(v4, "203.0.113.20", 7)
    data = await packet(tun)
    seen["packet"] = [data[0] >> 4, str(ip_address(data[12:16])), str(ip_address(data[16:20])), data[28:].decode()]
    v6 = await room.open(socket.AF_INET6, socket.SOCK_DGRAM)
    seen["routed6"] = attempt(v6, "2001:db8:1::20", 7)
    data = await packet(tun)
    seen["packet6"] = [data[0] >> 4, str(ip_address(data[8:24])), str(ip_address(data[24:40])), data[48:].decode()]
    unrouted = await room.open(socket.AF_INET, socket.SOCK_DGRAM)
    seen["unrouted"] = attempt(unrouted, "198.51.100.1", 7)
    refused = await room.open(socket.AF_INET, socket.SOCK_DGRAM)
    seen["refused"] = attempt(refused, "203.0.113.200", 7)

    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(COUNT):
            (await room.open(socket.AF_INET, socket.SOCK_STREAM)).close()
        taken.append((time.perf_counter() - begin) / COUNT * 1e6)
    seen["us"] = min(taken)  # a busy machine is a part of the others

    show = [sys.argv[1], "-json", "address", "show"]
    interfaces = json.loads(subprocess.run(show, preexec_fn=room.enter, capture_output=True, check=True).stdout)
    seen["interfaces"] = {each["ifname"]: [known["local"] for known in each["addr_info"]] for each in interfaces}

    connection = await room.open(socket.AF_INET, socket.SOCK_STREAM)
    connecting = asyncio.ensure_future(loop.sock_connect(connection, ("203.0.113.20", 7)))
    await packet(tun)
    room.close()
    try:
        await asyncio.wait_for(connecting, 60)
    except OSError as error:
        seen["cut"] = errno.errorcode[error.errno]
    await asyncio.wait_for(room.lost(), 60)
    try:
        while True:
            await room.open(socket.AF_INET, socket.SOCK_STREAM)
    except ConnectionResetError as error:
        seen["closed"] = str(error)
    print(json.dumps(seen), flush=True)

    rooms = [await TunNamespace.make() for _ in range(2)]
    assert len(rooms) == 2
    print("holding", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
