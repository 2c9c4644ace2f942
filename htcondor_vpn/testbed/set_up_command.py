"""What the programs of this room that set something up tell: a line for each step, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from htcondor_vpn.errors import VpnError


def say(text: str) -> None:
    """Prints a line for who waits."""
    print(text, file=sys.stderr, flush=True)


def exit_code(work: Callable[[], object]) -> int:
    """Does `work`; returns 0, or the code of the `VpnError` that it raised, which is said."""
    try:
        work()
    except VpnError as error:
        say(str(error))
        return error.exit_code
    return 0
