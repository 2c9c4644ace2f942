"""Who is let in, and for how long: all authenticators together, the deny list, and the pilots' leases.

A pilot is served until the last credential that it has shown expires. So a flow outlives a short-lived token that is
renewed on the node's disk, and ends with the last one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from htcondor_vpn.errors import VpnError
from htcondor_vpn.gateway.trust.deny_list import DenyList
from htcondor_vpn.gateway.trust.identity import Authenticator, CredentialRefused, Identity, Presented
from htcondor_vpn.gateway.trust.leases import Leases
from htcondor_vpn.gateway.trust.tokens import KIND as OWN_TOKEN


class _Refreshed(Protocol):
    def refresh(self) -> None: ...


class Gatekeeper:
    """`pilots` are patterns (fnmatch) of the names that are admitted with a credential that others have issued."""

    def __init__(
        self,
        authenticators: Sequence[Authenticator],
        deny_list: DenyList,
        leases: Leases,
        pilots: Sequence[str] = ("*",),
    ) -> None:
        self._authenticators, self._deny_list, self._leases = tuple(authenticators), deny_list, leases
        self._pilots = tuple(pilots)

    def admit(self, presented: Presented) -> Identity:
        """Returns whose the credential is; raises `CredentialRefused`, or `VpnError` if that cannot be told now.

        A bearer token that is not good is refused, whatever certificate comes with it.
        """
        identity = self._identify(presented)
        if identity.kind != OWN_TOKEN and not any(fnmatchcase(identity.name, each) for each in self._pilots):
            raise CredentialRefused(f"{identity.name} is none of the pilots that are admitted")
        self._deny_list.refresh()
        if self._deny_list.names(identity):
            raise CredentialRefused(f"{identity.name} is denied")
        if identity.expires <= time.time():
            raise CredentialRefused(f"the credential of {identity.name} has expired")
        if identity.kind != OWN_TOKEN:
            self._leases.extend(identity)
        return identity

    def _identify(self, presented: Presented) -> Identity:
        for each in (Presented(bearer=presented.bearer), Presented(certificate=presented.certificate)):
            if each == Presented():
                continue
            for authenticator in self._authenticators:
                identity = authenticator.identify(each)
                if identity is not None:
                    return identity
            if each.bearer is not None:
                raise CredentialRefused("a token of no kind that is accepted here")
        raise CredentialRefused("no credential")

    def ended(self, identity: Identity) -> str | None:
        """Returns why an admitted identity is served no more, according to the last `refresh`, or None if it is."""
        if self._deny_list.names(identity) or any(each.revoked(identity) for each in self._authenticators):
            return "credential_revoked"
        if max(identity.expires, self._leases.until(identity.name)) <= time.time():
            return "credential_expired"
        return None

    def refresh(self) -> None:
        """Learns of changes by other processes; raises `VpnError` after all were asked, if it cannot be told of one."""
        problem: VpnError | None = None
        stores: list[_Refreshed] = [self._deny_list, self._leases, *self._authenticators]
        for each in stores:
            try:
                each.refresh()
            except VpnError as error:
                problem = problem or error
        if problem is not None:
            raise problem
