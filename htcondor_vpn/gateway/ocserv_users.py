"""The users of an ocserv gateway: who may log in, kept in ocserv's own password file by its own program."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from htcondor_vpn.errors import GatewayFolderError, TokenNameError
from htcondor_vpn.gateway.trust.folder import locked, open_folder
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program

_PASSWORD_BYTES = 24
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


class OcservUsers:
    """The users in `folder`, a gateway's."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = open_folder(folder) / "ocserv"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._file = self.folder / "passwd"
            self._file.touch(0o600)
        except OSError as error:
            raise GatewayFolderError(f"{self.folder} cannot be used: {error.strerror}", "check its owner") from error

    def add(self, name: str) -> str:
        """Makes a user and returns the password, which only its hash is kept of; raises `TokenNameError`."""
        if not _NAME.fullmatch(name):
            raise TokenNameError(f"{name!r} is no name for a user", "use letters, digits, and . _ @ - within")
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        with locked(self.folder):
            if name in self.list():
                raise TokenNameError(f"there is a user {name} already", "revoke it first, or choose another name")
            self._ocpasswd(name, stdin=f"{password}\n{password}\n")
        return password

    @property
    def admitted(self) -> Path:
        """The file of those that may log in: all or nobody."""
        return self.folder / "admitted"

    def admit_all(self) -> None:
        """Lets all users log in, those who are added later too; raises `GatewayFolderError`."""
        self._admit(self._file)

    def admit_nobody(self) -> None:
        """Lets nobody log in; who has is not concerned. Raises `GatewayFolderError`."""
        nobody = self.folder / "nobody"
        try:
            nobody.write_text("")
        except OSError as error:
            raise GatewayFolderError(f"{nobody} cannot be written: {error.strerror}", "check the disk") from error
        self._admit(nobody)

    def _admit(self, target: Path) -> None:
        new = self.admitted.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(self.admitted)
        except OSError as error:
            cause = f"{self.admitted} cannot be made: {error.strerror}"
            raise GatewayFolderError(cause, "check the folder's owner and the disk") from error

    def revoke(self, name: str) -> None:
        """Removes a user; raises `TokenNameError`."""
        with locked(self.folder):
            if name not in self.list():
                raise TokenNameError(f"there is no user {name}", "see `htcondor-vpn gateway ocserv list`")
            self._ocpasswd("-d", name)

    def list(self) -> list[str]:
        """Returns the names."""
        try:
            lines = self._file.read_text().splitlines()
        except OSError as error:
            raise GatewayFolderError(f"{self._file} cannot be read: {error.strerror}", "check its owner") from error
        return [line.partition(":")[0] for line in lines if line.strip()]

    def _ocpasswd(self, *words: str, stdin: str = "") -> None:
        try:
            run_program([find_program("ocpasswd", "ocserv"), "-c", str(self._file), *words], stdin=stdin)
        except ProgramFailed as error:
            raise GatewayFolderError(f"{self._file} cannot be changed: {error.stderr.strip()}", "check it") from error
