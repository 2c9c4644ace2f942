"""Where a name's row lies in a table that processes share, and the lock on it.

The lock is a record lock (fcntl(2)), which the kernel releases at its holder's death.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

ROWS = 16384
KEY_BYTES = 16
#: Where a name's row may be, from the place on that its digest tells.
_WINDOW = 32


def key_of(name: str) -> bytes:
    """What stands for a name in a table."""
    return hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()


def window(key: bytes) -> Iterator[int]:
    """The rows, 0 to ROWS - 1, in which a key may be."""
    first = int.from_bytes(key[:4], "little")
    return ((first + step) % ROWS for step in range(_WINDOW))


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Within, no other process is."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
