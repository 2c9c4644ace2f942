"""A destination that cannot be reached, in the words of HTTP: a status, and an error type of RFC 9209's registry.

Whoever connects on an application's behalf says it like this, so that the application can be told what happened.
"""

from __future__ import annotations

import errno

_UNROUTABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}


class Unreachable(Exception):
    """A destination that was not reached: the HTTP status, RFC 9209's error type, and a detail for people."""

    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.error = status, error

    @property
    def proxy_status(self) -> str:
        """The value of a Proxy-Status header."""
        return f"htcondor-vpn; error={self.error}"

    @classmethod
    def by(cls, error: OSError) -> Unreachable:
        """What a failed connect(2) means."""
        detail = error.strerror or str(error)
        if error.errno == errno.ECONNREFUSED:
            return cls(502, "connection_refused", detail)
        if error.errno == errno.ETIMEDOUT:
            return cls(504, "connection_timeout", detail)
        if error.errno in _UNROUTABLE:
            return cls(502, "destination_ip_unroutable", detail)
        if error.errno in _EXHAUSTED:
            return cls(503, "proxy_internal_error", detail)
        return cls(502, "connection_terminated", detail)
