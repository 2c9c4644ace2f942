"""What a forked process holds of its parent's."""

from __future__ import annotations

import os
from collections.abc import Container


def close_all_but(keep: Container[int]) -> None:
    """Closes every descriptor of this process that is not in `keep`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor
