"""Content that both ends know without telling each other: N bytes of it are the first N of one endless stream.

The stream repeats a block of pseudo-random bytes whose length is a prime, so that a lost, doubled or misplaced piece of
any usual size changes it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

_BLOCK = random.Random(1).randbytes(1048573)  # noqa: S311


def chunks(length_bytes: int) -> Iterator[memoryview]:
    """Yields the first `length_bytes` of the stream, in pieces of up to 1 MiB."""
    block = memoryview(_BLOCK)
    while length_bytes > 0:
        yield block[:length_bytes]
        length_bytes -= len(block)


def sha256(length_bytes: int) -> str:
    """Returns the digest of the first `length_bytes` of the stream, hexadecimal."""
    digest = hashlib.sha256()
    for chunk in chunks(length_bytes):
        digest.update(chunk)
    return digest.hexdigest()
