"""Names of the site's own, which the world's name servers do not know: asked of the site's, past the tunnel."""

from __future__ import annotations

from collections.abc import Sequence

from htcondor_vpn.tunnel.carriers.dns_plain import PlainNameServer
from htcondor_vpn.tunnel.carriers.name_servers import NameServers
from htcondor_vpn.tunnel.catching.dns import question_name
from htcondor_vpn.wire.dialing import HOST, SocketSource

_PROBE_SECONDS = 3.0


class PrivateNames:
    """Asks `name_servers`, (address, port), for names in `domains`, by sockets of `source`."""

    def __init__(
        self, domains: Sequence[str], name_servers: Sequence[tuple[str, int]], source: SocketSource = HOST
    ) -> None:
        self._domains = [tuple(domain.lower().encode().split(b".")) for domain in domains]
        self._servers = NameServers(
            [PlainNameServer(address, port, source) for address, port in name_servers],
            "the node's network",
            "check HTCONDOR_VPN_DIRECT_NAME_SERVERS",
            _PROBE_SECONDS,
        )

    async def ask(self, query: bytes) -> bytes | None:
        """Returns the answer to a DNS message, or None for one about another name; raises as `NameServer.ask`."""
        name = question_name(query)
        if not any(name[-len(domain) :] == domain for domain in self._domains):
            return None
        return await self._servers.ask(query)
