"""Printing for people and for pipes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from htcondor_vpn.errors import UsageError


def say(text: str) -> None:
    """Prints `text` and a line's end. Whoever has stopped reading (`… | head`) has seen enough: that is no error."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise the same error again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def print_secret(text: str, what: str) -> None:
    """Prints what cannot be printed again; raises `UsageError` if nobody got it."""
    try:
        os.write(sys.stdout.fileno(), text.encode())
    except OSError as error:
        cause = f"{what} could not be printed, and is none now: {error.strerror}"
        raise UsageError(cause, "have it written by --output FILE") from error


def plain(text: str) -> str:
    """Escapes what a terminal should not get: control characters, line ends, bytes of a file that were not text."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def date(seconds: float) -> str:
    """Writes a time in Unix seconds as UTC (RFC 3339), and math.inf as `never`."""
    return "never" if seconds == float("inf") else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def size(count: float) -> str:
    """Writes a number of bytes in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints `rows` of equal length, the first of which is the header, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    say("\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows))
