"""How many connections there are, in total and of each pilot, counted over all processes of a gateway.

The counts lie in memory that the processes share, one column for each process, so that a process that dies takes its
own with it. A lock makes a limit exact.
"""

from __future__ import annotations

import mmap
import os
from contextlib import AbstractContextManager

from htcondor_vpn.gateway.operation.shared_rows import KEY_BYTES, ROWS, key_of, locked, window

#: How many processes may share the counts, those of former generations that still have flows included.
COLUMNS = 64
_CELLS = (1 + ROWS) * COLUMNS  # the first row is the total
_BYTES = _CELLS * 4 + ROWS * KEY_BYTES


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
            row = self._row(key_of(name))
            return 0 if row is None else self._sum(row)

    def enter(self, column: int, step: int = 1) -> None:
        """Counts a connection of the process of `column`."""
        self._counts[column] += step  # no one else writes there

    def leave(self, column: int) -> None:
        """Counts a connection off."""
        self.enter(column, -1)

    def bind(self, column: int, name: str, limit: int) -> bool:
        """Counts a connection as one of `name`, unless it has `limit` already; returns whether it did."""
        key = key_of(name)
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
            row = self._row(key_of(name))
            assert row is not None
            self._counts[row * COLUMNS + column] -= 1

    def clear(self, column: int) -> None:
        """Counts off everything of a process that is gone. Waits for nobody.

        It takes no lock: no one else writes there, and who has the lock may be stopped, and ours to be killed.
        """
        for cell in range(column, _CELLS, COLUMNS):
            if self._counts[cell]:
                self._counts[cell] = 0

    def _row(self, key: bytes) -> int | None:
        return next((row for row in _rows(key) if self._key_of(row) == key), None)

    def _free_row(self, key: bytes) -> int | None:
        for row in _rows(key):
            if not self._sum(row):
                place = (row - 1) * KEY_BYTES
                self._keys[place : place + KEY_BYTES] = key
                return row
        return None

    def _key_of(self, row: int) -> memoryview:
        place = (row - 1) * KEY_BYTES
        return self._keys[place : place + KEY_BYTES]

    def _sum(self, row: int) -> int:
        return sum(self._counts[row * COLUMNS : (row + 1) * COLUMNS])

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.descriptor)


def _rows(key: bytes) -> list[int]:
    return [row + 1 for row in window(key)]
