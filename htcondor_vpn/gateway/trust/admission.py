"""The gatekeeper as the settings describe it, with all that it judges by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from htcondor_vpn.gateway.trust.client_certificate import ClientCertificates
from htcondor_vpn.gateway.trust.deny_list import DenyList
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.identity import Authenticator
from htcondor_vpn.gateway.trust.idtoken import Pool
from htcondor_vpn.gateway.trust.jwt_bearer import Issuer, JsonWebTokens
from htcondor_vpn.gateway.trust.key_sets import FetchedKeys, KeyFile
from htcondor_vpn.gateway.trust.leases import Leases
from htcondor_vpn.gateway.trust.scitoken import SciTokenIssuer
from htcondor_vpn.gateway.trust.tokens import TokenStore
from htcondor_vpn.settings import Settings


@contextmanager
def gatekeeper(settings: Settings) -> Iterator[Gatekeeper]:
    """Opens a gatekeeper for one process, in whose thread it stays; raises `VpnError`."""
    folder = open_folder(settings.gateway_dir)
    with ExitStack() as stack:
        tokens = stack.enter_context(TokenStore(folder))
        others = list(_others(settings, stack))
        deny_list = stack.enter_context(DenyList(folder))
        leases = stack.enter_context(Leases(folder))
        yield Gatekeeper([tokens, *others], deny_list, leases, settings.gateway_pilots)


def admits_anyone(settings: Settings) -> bool:
    """Whether there is a credential with which anyone could be admitted; raises `VpnError`."""
    if settings.gateway_client_ca_file or settings.gateway_idtoken_keys or settings.gateway_scitoken_issuers:
        return True
    with TokenStore(open_folder(settings.gateway_dir)) as tokens:
        return bool(tokens.list())


def _others(settings: Settings, stack: ExitStack) -> Iterator[Authenticator]:
    if settings.gateway_client_ca_file:
        yield ClientCertificates(settings.gateway_client_ca_file, settings.gateway_client_crl_file)
    issuers: list[Issuer] = []
    if settings.gateway_idtoken_keys:
        domain, keys = settings.gateway_idtoken_issuer, settings.gateway_idtoken_keys
        issuers.append(Pool(domain, keys, settings.gateway_idtoken_scopes))
    for url, file in settings.gateway_scitoken_issuers:
        keys = KeyFile(file) if file else stack.enter_context(FetchedKeys(url))
        issuers.append(SciTokenIssuer(url, keys, settings.gateway_scitoken_audiences, settings.gateway_scitoken_scopes))
    if issuers:
        yield JsonWebTokens(issuers)
