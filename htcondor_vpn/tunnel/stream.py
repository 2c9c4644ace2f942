"""The engine of streams: each TCP connection of the inner namespace is a flow of its own through a carrier.

Datagrams share one way through it if they are between the same two ends, where the carrier has such a thing.
Nothing is ever sent anywhere but to a carrier that works, and to a gateway only after its key was checked. While none
is up, connections are reset.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Hashable, Sequence
from ipaddress import ip_address
from typing import Any

from htcondor_vpn.addresses import link_of
from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.acceptor import Acceptor
from htcondor_vpn.linux.datagrams import DatagramSockets
from htcondor_vpn.linux.sockets import local_ports
from htcondor_vpn.tunnel.bandwidth import Bandwidth
from htcondor_vpn.tunnel.carrier import CarrierBusy, FlowRefused
from htcondor_vpn.tunnel.carriers.private_names import PrivateNames
from htcondor_vpn.tunnel.catching.datagrams import DatagramCarrier
from htcondor_vpn.tunnel.catching.dns import DnsResponder
from htcondor_vpn.tunnel.catching.echoes import EchoCarrier
from htcondor_vpn.tunnel.catching.holding import Holder
from htcondor_vpn.tunnel.catching.shared_by import SharedBy, by_link
from htcondor_vpn.tunnel.engine import EngineReport, InnerSockets
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.routes import Route, Routes
from htcondor_vpn.tunnel.workers.own_flows import sum_of
from htcondor_vpn.tunnel.workers.workers import Workers
from htcondor_vpn.wire.fair_share import FairShare
from htcondor_vpn.wire.tls import reset

_FINISH_SECONDS = 5.0

log = logging.getLogger(__name__)


class StreamEngine:
    """See `Engine`. Uses the first of `pools` that works, but for what `routes` lead elsewhere.

    `private_names` are asked first, and answer None to what they do not know about. `rates_mbps` are (up, down) as
    advertised; where one is 0 both are measured, if it is a gateway of ours. Limits are shared by those that
    `shared_by` tells apart, and there are at most `most_associations` of datagrams. `workers` relay the flows; without
    any this process does.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        rates_mbps: tuple[float, float] = (0, 0),
        routes: Sequence[Route] = (),
        private_names: PrivateNames | None = None,
        shared_by: SharedBy = by_link,
        most_associations: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._ladder = Ladder(pools)
        self._routes = Routes(routes, self._ladder)
        self._private_names = private_names
        self._bandwidth = Bandwidth(rates_mbps if all(rates_mbps) else None, self._report)
        self._tell: Callable[[EngineReport], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptors: list[Acceptor] = []
        self._workers = Workers() if workers is None else workers
        self._datagrams = DatagramCarrier(self._routes.open_datagrams, shared_by, most_associations)
        self._shared_by, self._open_flows = shared_by, FairShare(sys.maxsize)
        self._holder = Holder(self._routes.open_flow, self._open_flows, shared_by)
        self._echoes = EchoCarrier(self._routes.echo, shared_by)

    async def run(self, report: Callable[[EngineReport], None]) -> None:
        self._tell = report
        await asyncio.gather(self._ladder.run(self._health_changed), self._routes.run(self._report))

    def serve(self, sockets: InnerSockets) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._workers.start()  # not earlier: nothing waits for them, and the tunnel is up sooner
        self._open_flows.limit = min(self._workers.room, local_ports())
        dns = DnsResponder(self._resolve)
        for sock in sockets.dns_datagrams:
            dns.serve_datagrams(sock)
        for sock in sockets.dns_streams:
            self._acceptors.append(Acceptor(sock, dns.serve_stream))
        for sock in sockets.flows:
            self._acceptors.append(Acceptor(sock, self._caught))
        for sock in sockets.queues:
            self._holder.serve(sock)
        for sock in sockets.echoes:
            self._echoes.serve(sock, sockets.echo_replies)
        for made in zip(sockets.datagrams, sockets.answers, sockets.errors):
            self._datagrams.serve(DatagramSockets(*made))

    async def finish(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        self._holder.finish()
        self._echoes.finish()
        delivering = asyncio.ensure_future(self._datagrams.finish())
        await asyncio.wait({delivering, *self._tasks}, timeout=_FINISH_SECONDS)
        await self._workers.finish()

    # Health

    def _health_changed(self) -> None:
        now = self._ladder.now
        if isinstance(now, Pool):
            self._bandwidth.look(now.healthy()[0].carrier)
        self._report()

    def _report(self) -> None:
        assert self._tell is not None
        carried = sum_of(self._workers.carried, self._datagrams.traffic)
        counters: dict[str, Any] = {
            "bytes_in": carried.bytes_to_plain,
            "bytes_out": carried.bytes_from_plain,
            "flows": self._workers.flows + self._datagrams.open,
            "routes": self._routes.told(),
        }
        now = self._ladder.now
        if isinstance(now, VpnError):
            error = type(now).__name__
            self._tell(EngineReport(up=False, error=error, cause=now.cause, remedy=now.remedy, **counters))
            return
        if not (healthy := now.healthy()):
            return  # it is being given up, which will be told
        first = healthy[0]
        up_mbps, down_mbps = self._bandwidth.rates_mbps or (None, None)
        self._tell(
            EngineReport(
                up=True,
                engine=now.engine,
                gateway=first.member.name,
                families=now.families,
                udp=now.udp or self._routes.udp,
                transport=first.answer.transport,
                latency_ms=first.answer.latency_ms,
                up_mbps=up_mbps,
                down_mbps=down_mbps,
                carriers=now.told(),
                **counters,
            )
        )

    # Flows

    def _caught(self, application: socket.socket) -> None:
        self._start(self._carry(application))

    async def _carry(self, application: socket.socket) -> None:
        host, port = application.getsockname()[:2]
        address = ip_address(host)
        owner: Hashable = None
        try:
            application.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (claimed := self._holder.claim(application)) is not None:
                (far, early), owner = claimed
            else:
                owner = self._share_of(application.getpeername()[0])
                far, early = await self._routes.open_flow(address, port)
        except (FlowRefused, VpnError, OSError, ssl.SSLError, asyncio.TimeoutError) as error:
            log.info("no flow to %s port %d: %s", address, port, error)
            reset(application)
        except asyncio.CancelledError:
            reset(application)
            raise
        else:
            await self._workers.relay(far, application, early)
        finally:
            if owner is not None:
                self._open_flows.release(owner)

    def _share_of(self, source: str) -> Hashable:
        """Takes one of what there may be of open flows for one that nobody held; raises `CarrierBusy`."""
        owner = self._shared_by(source, link_of(source))
        if not self._open_flows.take(owner):
            raise CarrierBusy(f"{source} has as many flows as it may have", "some of them have to end first")
        return owner

    async def _resolve(self, query: bytes) -> bytes:
        if self._private_names is not None and (answer := await self._private_names.ask(query)) is not None:
            return answer
        return await self._ladder.ask_dns(query)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", exc_info=task.exception())
