"""Tries something for real, in namespaces that vanish with the process that tries it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.mounts import keep_mounts_to_ourselves
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, CLONE_NEWNS, die_with_parent, new_user_namespace

_SECONDS = 30.0


class Refused(VpnError):
    """What was tried does not work here: `cause` says why, `remedy` what may mend it."""


def try_in_namespaces(probe: Callable[[], str], flags: int = CLONE_NEWNET | CLONE_NEWNS) -> str:
    """Returns what `probe` says, in a child in new namespaces: of users, and those of `flags`.

    Raises `Refused` with what it raised.
    """

    def within() -> str:
        new_user_namespace(flags)
        if flags & CLONE_NEWNS:
            keep_mounts_to_ourselves()
        return probe()

    return try_in_child(within)


def try_in_child(probe: Callable[[], str]) -> str:
    """Returns what `probe` says, in a child process; raises `Refused` with what it raised."""
    parent = os.getpid()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _work(probe, tell, parent)
    os.close(tell)
    try:
        answer = b""
        while select.select([told], [], [], _SECONDS)[0] and (chunk := os.read(told, 65536)):
            answer += chunk
    finally:
        os.close(told)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if not answer:
        raise Refused(f"the attempt ended without a word (wait status {status})")
    message = json.loads(answer)
    if "cause" in message:
        raise Refused(message["cause"], message["remedy"])
    return str(message["said"])


def _work(probe: Callable[[], str], tell: int, parent: int) -> NoReturn:
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        message = {"said": probe()}
    except VpnError as error:
        message = {"cause": error.cause, "remedy": error.remedy}
    except Exception as error:  # whatever it is, it is what does not work
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = {"cause": f"{type(error).__name__}: {what}", "remedy": ""}
    with suppress(OSError):
        os.write(tell, json.dumps(message).encode())
    os._exit(0)
