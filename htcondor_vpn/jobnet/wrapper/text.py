"""Text as the kernel takes and gives it, and what is said to the job's user."""

from __future__ import annotations

import posix
import sys

_ENCODING = sys.getfilesystemencoding(), "surrogateescape"  # as in `os`


def encoded(text: str) -> bytes:
    """As the kernel takes it: os.fsencode."""
    return text.encode(*_ENCODING)


def decoded(data: bytes) -> str:
    """What the kernel gave: os.fsdecode."""
    return data.decode(*_ENCODING)


def complain(reason: str) -> None:
    """Says something on the job's stderr."""
    posix.write(2, encoded(f"htcondor-vpn: {reason}\n"))
