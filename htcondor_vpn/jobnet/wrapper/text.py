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
    """Says something on the job's stderr, if that takes it: a full disk must not cost the job its own exit code."""
    try:
        posix.write(2, encoded(f"htcondor-vpn: {reason}\n"))
    except OSError:
        return


def write_reason(path: str, reason: str) -> None:
    """Writes why the job cannot be run where HTCondor looks for that, as far as it can be written."""
    try:
        with open(path, "wb") as file:
            file.write(encoded(reason) + b"\n")
    except OSError as error:
        complain(f"{path} cannot be written: {error.strerror}")
