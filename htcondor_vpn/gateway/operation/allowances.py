"""What each pilot may still do of something that is bounded in time, counted over all processes of a gateway.

It is the generic cell rate algorithm (ITU-T I.371, as a virtual scheduling algorithm): of each name one time is kept,
from which on its allowance is whole again. So a row whose time is past is free, and nothing has to be tidied up.
"""

from __future__ import annotations

import mmap
import os

from htcondor_vpn.gateway.operation.shared_rows import KEY_BYTES, ROWS, key_of, locked, window

_TIMES_BYTES = ROWS * 8


class Allowances:
    """The table, in memory that processes share which are forked after it was made; `descriptor` is what they lock."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("htcondor-vpn-allowances")
        os.ftruncate(self.descriptor, _TIMES_BYTES + ROWS * KEY_BYTES)
        memory = memoryview(mmap.mmap(self.descriptor, _TIMES_BYTES + ROWS * KEY_BYTES))
        self._whole_at = memory[:_TIMES_BYTES].cast("d")
        self._keys = memory[_TIMES_BYTES:]

    def close(self) -> None:
        """Closes the descriptor; the memory stays as long as anyone has it."""
        os.close(self.descriptor)

    def take(self, name: str, count: int, now: float, burst: float, per_second: float) -> bool:
        """Takes `count` of what `name` may do, `burst` at once and `per_second` from then on, if that much is left.

        `now` is of the monotonic clock, which all processes share. Returns whether it was.
        """
        key = key_of(name)
        with locked(self.descriptor):
            row = self._row(key, now)
            if row is None:
                return False
            whole_at = max(self._whole_at[row], now) + count / per_second
            if whole_at - now > burst / per_second + 1e-9:
                return False
            self._whole_at[row] = whole_at
            self._keys[row * KEY_BYTES : (row + 1) * KEY_BYTES] = key
        return True

    def _row(self, key: bytes, now: float) -> int | None:
        """The row of a name; if it has none, one that is free."""
        free = None
        for row in window(key):
            if self._keys[row * KEY_BYTES : (row + 1) * KEY_BYTES] == key:
                return row
            if free is None and self._whole_at[row] <= now:
                free = row
        return free
