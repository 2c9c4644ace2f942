"""Room on the gateway's disk that is kept for what has to be possible on a full one: to end a credential."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.errors import GatewayFolderError

FILE = "reserve"
#: As much of it as there is room for. To change a database takes some pages, and 32 KB that its readers share.
_BYTES = (256 * 1024, 128 * 1024, 64 * 1024)


def keep(folder: Path) -> None:
    """Has the room kept in `folder`, as far as there is any."""
    for count in _BYTES:
        with suppress(OSError):
            descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, count)
            finally:
                os.close(descriptor)
            return


def spend(folder: Path, end: Callable[[], None], instead: str) -> None:
    """Ends a credential by `end`, once more with the room that is kept where that fails.

    Raises `GatewayFolderError`, which begins with `instead`: how things still are; and whatever else `end` raises.
    """
    try:
        end()
        return
    except GatewayFolderError:
        with suppress(OSError):
            (folder / FILE).unlink()
    try:
        end()
    except GatewayFolderError as error:
        remedy = f"{error.remedy}, and do it again: until then only the gateway's end cuts it"
        raise GatewayFolderError(f"{instead}: {error.cause}", remedy) from error
    finally:
        keep(folder)
