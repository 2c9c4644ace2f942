"""Credentials that a pilot takes along, looked at before it starts: later is too late to be told of a mistake."""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
import time
from pathlib import Path

from htcondor_vpn.errors import TokenUnusable

#: A token that ends sooner than this is of no use to a pilot.
LEAST_SECONDS = 300.0


def check_secret(path: Path) -> None:
    """Raises `TokenUnusable` unless `path` is a file of ours that nobody else can read, and not empty."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
            raise TokenUnusable(f"{path} is no file that can be read", f"ls -l {path}")
    except OSError as error:
        raise TokenUnusable(f"{path}: {error.strerror}", "name the file with the credential") from error
    if status.st_mode & 0o077:
        raise TokenUnusable(f"{path} can be read by others", f"chmod 600 {path}")
    if not status.st_size:
        raise TokenUnusable(f"{path} is empty", "get the credential again")


def check_jwt(path: Path, seconds: float = LEAST_SECONDS) -> None:
    """Raises `TokenUnusable` unless `path` holds a secret JSON Web Token that is valid for so long from now.

    Who verifies its signature is the server; here only its times are looked at (RFC 7519, exp).
    """
    check_secret(path)
    try:
        payload = path.read_text(encoding="ascii").split()[0].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        left = float(claims.get("exp", "inf")) - time.time()
    except (IndexError, binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise TokenUnusable(f"{path} holds no token (JWT)", "condor_token_create -identity … > FILE") from error
    if left <= 0:
        raise TokenUnusable(f"the token in {path} has expired", "get a new one")
    if left < seconds:
        raise TokenUnusable(f"the token in {path} ends in {left:.0f} s, the pilot in {seconds:.0f} s", "get a new one")
