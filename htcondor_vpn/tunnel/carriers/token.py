"""What a pilot must keep secret: each in a file that its owner alone can read, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from htcondor_vpn.errors import ConfigError, TokenUnusable
from htcondor_vpn.wire.renewed import Renewed

_MAX_BYTES = 16 * 1024


def read_token(path: Path | None) -> str:
    """Returns the gateways' bearer token; raises `ConfigError` without a path, `TokenUnusable` otherwise."""
    if path is None:
        remedy = "set HTCONDOR_VPN_TOKEN_FILE (--token-file) to the pilot's token file"
        raise ConfigError("no token is configured", remedy)
    token = _read_secret(path, "token", "HTCONDOR_VPN_TOKEN_FILE")
    if not re.fullmatch(r"[!-~]+", token):
        raise TokenUnusable(f"the token file {path} holds no token", "it must hold one line of printable ASCII")
    return token


def renewed_token(path: Path | None) -> Renewed[str]:
    """The token as it is in the file now: short-lived ones are renewed while the pilot runs. Raises as `read_token`.

    The file may be deleted once it was read.
    """
    read_token(path)
    assert path is not None  # or it had been raised
    return Renewed(path, read_token, "the last token", may_go=True)


def check_private_key(path: Path, knob: str = "HTCONDOR_VPN_KEY_FILE") -> None:
    """Raises `TokenUnusable` unless its owner alone can read the private key in `path`, which `knob` names."""
    _read_secret(path, "private key", knob)


def read_credentials(path: Path | None, knob: str) -> tuple[str, str] | None:
    """Returns the user and password in the file that `knob` names, or None without one; raises `TokenUnusable`."""
    if path is None:
        return None
    user, colon, password = _read_secret(path, "password", knob).partition(":")
    if not (user and colon and password and re.fullmatch(r"[ -~]{1,255}", user + password)):
        raise TokenUnusable(
            f"the password file {path} holds no password", "it must hold one line USER:PASSWORD of printable ASCII"
        )
    return user, password


def _read_secret(path: Path, what: str, knob: str) -> str:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_BYTES)
    except OSError as error:
        remedy = f"chmod 600 {path}, as its owner" if isinstance(error, PermissionError) else f"check {knob}"
        raise TokenUnusable(f"the {what} file {path} cannot be read: {error.strerror}", remedy) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise TokenUnusable(f"others may read the {what} file {path}", f"chmod 600 {path}")
    return data.decode("ascii", "replace").strip()
