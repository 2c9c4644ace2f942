"""Asks a running ocserv about its sessions, by its own program occtl(8)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.packet_gateway.sessions import Reading
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace

_ANSWER_SECONDS = 5.0
#: nsenter(1): what is entered with each of the descriptors of a namespace, which are `KINDS`.
_OPTIONS = ("user", "mount", "net")


async def ocserv_sessions(control: Path, namespace: TunNamespace | None) -> list[Reading]:
    """Returns the sessions of the ocserv whose control socket that is.

    occtl takes the bytes from the network devices: so it is run in the `namespace` where they are. Raises OSError or
    ValueError where there is no answer, and of the former TimeoutError where none comes.
    """
    argv = [find_program("occtl", "ocserv"), "--json", "--socket-file", str(control), "show", "users"]
    descriptors: tuple[int, ...] = ()
    if namespace is not None:
        # Not by code of ours between fork and exec: this process has threads by then, of which one may hold a lock.
        descriptors = namespace.descriptors
        entered = [f"--{option}=/proc/self/fd/{number}" for option, number in zip(_OPTIONS, descriptors)]
        argv = [find_program("nsenter", "util-linux"), "--preserve-credentials", *entered, *argv]
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        pass_fds=descriptors, cwd="/",
    )  # fmt: skip
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _ANSWER_SECONDS)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, asyncio.TimeoutError):
            raise TimeoutError("ocserv does not answer") from None
        raise
    return parse_users(said.decode("utf-8", "replace"))


def parse_users(text: str) -> list[Reading]:
    """Reads what `occtl --json show users` prints; raises ValueError if it is something else."""
    users = json.loads(text)
    if not isinstance(users, list):
        raise ValueError("occtl tells of no users")
    found = []
    for user in users:
        try:
            if user["State"] != "connected" or not user["Device"]:  # it is logging in, or leaving
                continue
            key = user["ID"], user["Device"], user["Connected at"]
            bytes_up, bytes_down = int(user.get("RX", 0)), int(user.get("TX", 0))
            address = str(user.get("IPv4") or user.get("IPv6") or "")
            found.append(Reading(key, user["Username"], f"{user['Remote IP']}:0", address, bytes_up, bytes_down))
        except (KeyError, TypeError) as error:
            raise ValueError(f"occtl tells of a user in another way: {error}") from None
    return found
