"""How many connections there are, in total and of each pilot, counted over all processes of a gateway.

The counts lie in memory that the processes share, one column for each process, so that a process that dies takes its
own with it. A record lock (fcntl(2)), which the kernel releases at its holder's death, makes a limit exact.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: How many processes may share the counts, those of former generations that still have flows included.
COLUMNS = 64
_ROWS = 16384
_KEY_BYTES = 16
#: Where a name's row may be, from the place on that its digest tells.
_WINDOW = 32
_CELLS = (1 + _ROWS) * COLUMNS  # the first row is the total
_BYTES = _CELLS * 4 + _ROWS * _KEY_BYTES


class Seats:
    """The table; `descriptor` is that of its memory, by which another program can share it too."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("htcondor-vpn-seats")
            os.ftruncate(descriptor, _BYTES)
        elif os.fstat(descriptor).st_size != _BYTES:
            raise ValueError("the memory is not that of such a table")
        self.descriptor = descriptor
        memory = memoryview(mmap.mmap(descriptor, _BYTES))
        self._counts = memory[: _CELLS * 4].cast("I")
        self._keys = memory[_CELLS * 4 :]

    def close(self) -> None:
        """Closes the descriptor; the memory stays as long as anyone has it."""
        os.close(self.descriptor)

    def total(self) -> int:
        """How many connections there are."""
        return sum(self._counts[:COLUMNS])

    def in_column(self, column: int) -> int:
        """How many of them the process of a column has."""
        return self._counts[column]

    def of(self, name: str) -> int:
        """How many connections are bound to `name`."""
        with self._locked():
            row = self._row(_key(name))
            return 0 if row is None else self._sum(row)

    def enter(self, column: int, step: int = 1) -> None:
        """Counts a connection of the process of `column`."""
        self._counts[column] += step  # no one else writes there

    def leave(self, column: int) -> None:
        """Counts a connection off."""
        self.enter(column, -1)

    def bind(self, column: int, name: str, limit: int) -> bool:
        """Counts a connection as one of `name`, unless it has `limit` already; returns whether it did."""
        key = _key(name)
        with self._locked():
            row = self._row(key)
            if row is None:
                row = self._free_row(key)
                if row is None:
                    return False
            if self._sum(row) >= limit:
                return False
            self._counts[row * COLUMNS + column] += 1
        return True

    def unbind(self, column: int, name: str) -> None:
        """Counts off what `bind` has counted."""
        with self._locked():
            row = self._row(_key(name))
            assert row is not None
            self._counts[row * COLUMNS + column] -= 1

    def clear(self, column: int) -> None:
        """Counts off everything of a process that is gone."""
        with self._locked():
            for cell in range(column, _CELLS, COLUMNS):
                if self._counts[cell]:
                    self._counts[cell] = 0

    def _row(self, key: bytes) -> int | None:
        return next((row for row in _window(key) if self._key_of(row) == key), None)

    def _free_row(self, key: bytes) -> int | None:
        for row in _window(key):
            if not self._sum(row):
                place = (row - 1) * _KEY_BYTES
                self._keys[place : place + _KEY_BYTES] = key
                return row
        return None

    def _key_of(self, row: int) -> memoryview:
        place = (row - 1) * _KEY_BYTES
        return self._keys[place : place + _KEY_BYTES]

    def _sum(self, row: int) -> int:
        return sum(self._counts[row * COLUMNS : (row + 1) * COLUMNS])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_KEY_BYTES).digest()


def _window(key: bytes) -> Iterator[int]:
    first = int.from_bytes(key[:4], "little")
    return ((first + step) % _ROWS + 1 for step in range(_WINDOW))
