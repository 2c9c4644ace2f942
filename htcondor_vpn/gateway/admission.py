"""The gatekeeper as the settings describe it, with all that it judges by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from htcondor_vpn.gateway.deny_list import DenyList
from htcondor_vpn.gateway.folder import open_folder
from htcondor_vpn.gateway.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.identity import Authenticator
from htcondor_vpn.gateway.leases import Leases
from htcondor_vpn.gateway.tokens import TokenStore
from htcondor_vpn.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def gatekeeper(settings: Settings) -> Iterator[Gatekeeper]:
    """Opens a gatekeeper for one process, in whose thread it stays; raises `VpnError`."""
    folder = open_folder(settings.gateway_dir)
    with ExitStack() as stack:
        tokens = stack.enter_context(TokenStore(folder))
        authenticators: list[Authenticator] = [tokens]
        if len(authenticators) == 1 and not tokens.list():
            log.warning("there are no tokens yet: `htcondor-vpn gateway token add NAME` makes one")
        deny_list = stack.enter_context(DenyList(folder))
        leases = stack.enter_context(Leases(folder))
        yield Gatekeeper(authenticators, deny_list, leases)
