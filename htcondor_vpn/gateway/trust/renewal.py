"""What a gateway shakes hands with: its certificate, key and the pilots' CAs, read again when they are renewed.

Running flows are untouched by that. TLS sessions of before are not resumed, so that a pilot sees the new certificate.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.credentials import Credentials, given_credentials
from htcondor_vpn.gateway.trust.folder import version_of

log = logging.getLogger(__name__)


class ServerTls:
    """`context` is what new connections are to be served with."""

    def __init__(self, credentials: Credentials, client_ca: Path | None = None) -> None:
        """Raises `GatewayFolderError`."""
        self._credentials, self._client_ca = credentials, client_ca
        self._version = self._look()
        self._failures = 0
        self.context: ssl.SSLContext = credentials.server_context(client_ca)

    def refresh(self) -> None:
        """Looks whether the files were renewed; keeps what it has while they cannot be used. Never raises."""
        try:
            version = self._look()
            if version == self._version:
                return
            present = self._credentials
            renewed = given_credentials(present.folder, present.certificate, present.key)
            self.context = renewed.server_context(self._client_ca)
        except GatewayFolderError as error:
            # One of two files may have been replaced and the other not yet: it is a problem if it is one next time.
            self._failures += 1
            if self._failures == 2:
                log.error("the renewed certificate is not used: %s", error)
            return
        self._credentials, self._version, self._failures = renewed, version, 0
        log.info("the certificate was renewed: new connections get %s", renewed.pin)

    def _look(self) -> list[object]:
        files = [self._credentials.certificate, self._credentials.key, *([self._client_ca] if self._client_ca else ())]
        return [version_of(path) for path in files]
