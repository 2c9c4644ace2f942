"""The public keys of token issuers: JSON Web Key Sets (RFC 7517) from files, or fetched from the web."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import jwt

from htcondor_vpn.errors import GatewayFolderError, VpnError
from htcondor_vpn.gateway.trust.folder import read_bytes, version_of
from htcondor_vpn.gateway.trust.identity import CredentialRefused

log = logging.getLogger(__name__)

_MAX_BYTES = 1024 * 1024
_TIMEOUT_SECONDS = 20.0
#: How often keys are fetched; and how soon after a failure, or for a token whose key is not among them.
_REFRESH_SECONDS, _RETRY_SECONDS = 600.0, 30.0
#: How long fetched keys may be used while their issuer does not answer (as scitokens-cpp does).
_KEEP_SECONDS = 4 * 86400.0


class KeyFile:
    """A `KeySet` in a file, which is read again when it is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, Any] = {}
        self._version: object = None
        self.refresh()

    def key(self, kid: str) -> Any:
        return _chosen(self._keys, kid)

    def refresh(self) -> None:
        version = version_of(self._path)
        if version == self._version:
            return
        try:
            self._keys, self._version = parse(read_bytes(self._path)), version
        except ValueError as error:
            cause = f"the issuer's keys in {self._path} cannot be used: {error}"
            raise GatewayFolderError(cause, "it must hold a JSON Web Key Set (RFC 7517)") from error


class FetchedKeys:
    """A `KeySet` that a thread of its own fetches, now and again; nobody ever waits for it. A context manager.

    The thread begins with the first use, for a process that is still to be forked must have none.
    """

    def __init__(self, issuer: str, context: ssl.SSLContext | None = None) -> None:
        self._issuer = issuer
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context or ssl.create_default_context()), _NoRedirects()
        )
        self._keys: Mapping[str, Any] = {}
        self._fetched = 0.0
        self._asked_at = 0.0
        self._wanted, self._ended = threading.Event(), False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FetchedKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wanted.set()

    def key(self, kid: str) -> Any:
        self.refresh()
        if not self._fetched or time.monotonic() - self._fetched > _KEEP_SECONDS:
            raise VpnError(f"the keys of {self._issuer} could not be fetched yet", "see the log for why")
        try:
            return _chosen(self._keys, kid)
        except CredentialRefused:
            if time.monotonic() - self._asked_at > _RETRY_SECONDS:  # the issuer may have a new one
                self._asked_at = time.monotonic()
                self._wanted.set()
            raise

    def refresh(self) -> None:
        """Starts the thread, which does the rest."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=f"keys of {self._issuer}")
            self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            try:
                self._keys = self._fetch()
                self._fetched = time.monotonic()
                pause_seconds = _REFRESH_SECONDS
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                log.error("the keys of %s cannot be fetched: %s", self._issuer, error)
                pause_seconds = _RETRY_SECONDS
            self._wanted.wait(pause_seconds)
            self._wanted.clear()

    def _fetch(self) -> Mapping[str, Any]:
        problem: Exception | None = None
        for url in metadata_urls(self._issuer):
            try:
                metadata = json.loads(self._get(url))
                if metadata["issuer"] != self._issuer:
                    raise ValueError(f"{url} is the metadata of another issuer")
                return parse(self._get(metadata["jwks_uri"]))
            except (OSError, ValueError, TypeError, KeyError) as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def _get(self, url: str) -> bytes:
        if urlsplit(url).scheme != "https":
            raise ValueError(f"{url} is not fetched: it is not https")
        try:
            with self._opener.open(url, timeout=_TIMEOUT_SECONDS) as answer:
                data: bytes = answer.read(_MAX_BYTES + 1)
        except HTTPError as error:
            error.close()
            raise ValueError(f"{url} is answered with {error.code}") from None
        except HTTPException as error:  # it is no OSError: no HTTP, an answer that is cut off, or no URL at all
            raise ValueError(f"{url} is not fetched: {type(error).__name__} {error}") from error
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{url} has more than {_MAX_BYTES} bytes")
        return data


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An issuer's keys are where its metadata says, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def metadata_urls(issuer: str) -> list[str]:
    """Where an issuer's metadata may be (OpenID Connect Discovery 1.0, 4; RFC 8414, 3)."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    return [
        f"https://{parts.netloc}{path}/.well-known/openid-configuration",
        f"https://{parts.netloc}/.well-known/oauth-authorization-server{path}",
    ]


def parse(data: bytes) -> dict[str, Any]:
    """Returns the RSA and EC keys of a JSON Web Key Set by name ("" for one without); raises ValueError for no set."""
    keys = {}
    try:
        for each in json.loads(data)["keys"]:
            if each.get("kty") in ("RSA", "EC") and each.get("use", "sig") == "sig":
                with suppress(jwt.PyJWTError):  # of a kind that nobody here would verify with
                    keys[str(each.get("kid", ""))] = jwt.PyJWK(each).key
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no JSON Web Key Set ({type(error).__name__})") from error
    if not keys:
        raise ValueError("it holds no public key")
    return keys


def _chosen(keys: Mapping[str, Any], kid: str) -> Any:
    try:
        return keys[kid]
    except KeyError:
        if not kid and len(keys) == 1:
            return next(iter(keys.values()))
        raise CredentialRefused("a token that was signed with an unknown key of its issuer") from None
