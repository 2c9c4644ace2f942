"""What a file holds now, which may be renewed while it is in use; a bad one does not take the place of a good one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from htcondor_vpn.errors import VpnError

Content = TypeVar("Content")

log = logging.getLogger(__name__)


class Renewed(Generic[Content]):
    """Called, it returns what `read` makes of the file at `path`, which is read again when it has changed.

    Where `read` raises VpnError then, that is logged once, and the last good content counts on, which `what` names; so
    it does, without a word, if the file is gone and `may_go`.
    """

    def __init__(self, path: Path, read: Callable[[Path], Content], what: str, *, may_go: bool = False) -> None:
        """Raises what `read` raises."""
        self._path, self._read, self._what, self._may_go = path, read, what, may_go
        self._version = self._look()
        self._content = read(path)
        self._told = ""

    def __call__(self) -> Content:
        version = self._look()
        if version == self._version or (version is None and self._may_go):
            return self._content
        try:
            self._content = self._read(self._path)
        except VpnError as error:  # it is tried again: a mode may be mended with no other trace
            if str(error) != self._told:
                self._told = str(error)
                log.error("%s; %s counts", error, self._what)
        else:
            self._version, self._told = version, ""
        return self._content

    def _look(self) -> tuple[int, int, int] | None:
        """What tells one version of the file from another."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
