"""An AnyConnect server (ocserv), for the engine `openconnect` and every other client of that protocol.

As root it runs on this host as it is, and the kernel forwards what pilots send, in this host's name (`kernel_nat`). As
an ordinary user it runs in a namespace of its own, where packets end: what comes out is caught there, as in a pilot's
own namespace, and goes on from this host as connections and datagrams of this process. The sockets at which pilots
arrive are this host's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from htcondor_vpn.addresses import JOB_LINK, OCSERV_V4, OCSERV_V6, PILOT_V4, PILOT_V6
from htcondor_vpn.errors import ConfigError, ListenError, VpnError
from htcondor_vpn.gateway.kernel_nat import KernelNat, Pilots, own_name_servers
from htcondor_vpn.gateway.ocserv_users import OcservUsers
from htcondor_vpn.gateway.operation.listening import listen, raise_descriptor_limit
from htcondor_vpn.gateway.operation.service import credentials
from htcondor_vpn.gateway.trust.folder import write_atomically
from htcondor_vpn.linux.heartbeat import BEAT_SECONDS
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.packet_gateway.inner import caught, host_engine
from htcondor_vpn.packet_gateway.ocserv_process import OcservProcess
from htcondor_vpn.packet_gateway.ocserv_sessions import ocserv_sessions
from htcondor_vpn.packet_gateway.operation import Operation, again
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace
from htcondor_vpn.tunnel.catching.catcher import find_nft

#: To the catcher it is a job's link, whose pilots may ask the resolver. A number follows.
_DEVICE = f"{JOB_LINK}-oc"
_CLIENTS = 4096

#: Where the processes that have become another account meet the others: the gateway's folder is closed to them.
_SOCKETS = Path("/run/htcondor-vpn-ocserv")

_READY_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_USERS_SECONDS = 1.0
_COUNT_SECONDS = 2.0
#: After so many questions in a row that it has not answered, each within some seconds, ocserv is killed.
_MOST_UNANSWERED = 2
_RESTART_SECONDS = 0.5

log = logging.getLogger(__name__)


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs the gateway until SIGTERM or SIGINT; raises `VpnError` if it cannot start, or its namespace is lost.

    `announce` gets a line for the port, the pin, and `ready`.
    """
    find_program("ocserv")
    found = credentials(settings)
    host, port = _endpoint(settings)
    for sock in listen(settings.gateway_listen):  # ocserv itself would only write it into its log
        sock.close()
    raise_descriptor_limit(settings.gateway_connections)
    users = OcservUsers(settings.gateway_dir)
    if not users.list():
        log.warning("there are no users yet: `htcondor-vpn gateway ocserv add NAME` makes one")
    as_root = os.geteuid() == 0
    single_uid = not as_root or _has_one_uid()
    if single_uid:
        log.warning("ocserv is told that it has dropped its privileges: it keeps the one account that there is here")
    config, control = users.folder / "ocserv.conf", users.folder / "control"
    users.admit_all()
    text = _render(
        folder=users.folder, admitted=users.admitted, control=control, certificate=found.certificate,
        key=found.key, host=host, port=port, clients=_CLIENTS, single_uid=single_uid,
        device=_DEVICE, network_v4=OCSERV_V4, network_v6=OCSERV_V6,
        name_servers=own_name_servers() if as_root else [PILOT_V4, PILOT_V6],
        sockets=users.folder if single_uid else _SOCKETS,
    )  # fmt: skip
    write_atomically(config, text.encode(), 0o600)

    async def serve() -> None:
        async with AsyncExitStack() as exits:
            operation = Operation(settings, "ocserv")  # before there is anything to take back
            exits.callback(operation.close)
            server = _OcservServer(config, control, users, operation, single_uid, (host or "127.0.0.1", port))
            if as_root:
                sockets = None if single_uid else _SOCKETS
                pilots = Pilots("ocserv", _DEVICE, (OCSERV_V4, OCSERV_V6), own_name_servers())
                exits.enter_context(KernelNat(pilots, settings.gateway_allow, settings.gateway_deny, sockets))
            else:
                await server.make_namespace(settings, exits)
            await server.start()
            exits.push_async_callback(server.end)
            announce(f"listening on TCP and UDP port {port}")
            announce(found.pin)
            operation.ready(server.shut)
            announce("ready")
            await server.serve()

    asyncio.run(serve())


class _OcservServer:
    """ocserv with its `config`, which answers at `endpoint`, and what carries on what its pilots send."""

    def __init__(
        self,
        config: Path,
        control: Path,
        users: OcservUsers,
        operation: Operation,
        single_uid: bool,
        endpoint: tuple[str, int],
    ) -> None:
        self._config, self._control, self._users, self._operation = config, control, users, operation
        self._single_uid, self._endpoint = single_uid, endpoint
        self._namespace: TunNamespace | None = None
        self._tasks: list[asyncio.Future[None]] = []
        self._process: OcservProcess | None = None
        self._names = set(users.list())
        self._unanswered = 0
        self._turn = asyncio.Lock()  # of those that count

    async def make_namespace(self, settings: Settings, exits: AsyncExitStack) -> None:
        """Makes the namespace, and begins to serve what will be caught there; raises `VpnError`, OSError."""
        engine = host_engine(settings)
        self._namespace = await TunNamespace.make(as_root=True)
        exits.callback(self._namespace.close)
        engine.serve(caught(self._namespace, find_nft(), settings.hold_connects))
        self._tasks = [asyncio.ensure_future(work) for work in (
            engine.run(lambda report: None if report.up else log.warning("%s", report.cause)), self._namespace.lost(),
        )]  # fmt: skip
        exits.push_async_callback(self._stop_engine)
        exits.push_async_callback(engine.finish)

    async def _stop_engine(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start(self) -> None:
        """Starts ocserv and returns when it answers; raises `ListenError`."""
        self._process = await OcservProcess.start(self._config, self._namespace, self._single_uid)
        ended = asyncio.ensure_future(self._process.ended())
        try:
            deadline = asyncio.get_running_loop().time() + _READY_SECONDS
            while not await self._answers():
                if ended.done() or asyncio.get_running_loop().time() > deadline:
                    await self._process.end()
                    raise ListenError("ocserv does not start", "its own words are in the log")
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            ended.cancel()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(*self._endpoint)
        except OSError:
            return False
        writer.close()
        return True

    async def serve(self) -> None:
        """Serves until it is told to end; raises `VpnError` when the namespace is lost."""
        works = [self._keep_running(), self._keep_awake(), self._keep_users(), self._keep_count()]
        await self._operation.serve(works, besides=self._tasks)

    async def _keep_running(self) -> None:
        """Starts ocserv again when it has ended; pilots log in again, and what is open stays open."""
        while True:
            assert self._process is not None
            code = await self._process.ended()
            log.error("ocserv ended with code %s and is started again", code)
            await self._process.end()
            await again(self.start, _RESTART_SECONDS)

    async def _keep_awake(self) -> None:
        """Looks whether one of its processes is stopped: only the first of them answers questions."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            assert self._process is not None
            self._process.look()

    async def _keep_users(self) -> None:
        """Has a user who is revoked thrown out, by all logging in again: ocserv asks for no password in a session."""
        problem = ""
        while True:
            await asyncio.sleep(_USERS_SECONDS)
            try:
                now = set(self._users.list())
            except VpnError as error:  # all whom it knows are users until it can be read again
                if str(error) != problem:
                    log.error("%s", error)
                problem = str(error)
                continue
            problem = ""
            gone, self._names = self._names - now, now  # first: it ends sessions, and tells so, before it has ended
            if gone:
                log.info("revoked: %s", " ".join(sorted(gone)))
                assert self._process is not None
                await self._process.end()  # and so it is started again

    async def _keep_count(self) -> None:
        """Asks about the sessions."""
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            await self._count()

    async def _count(self) -> None:
        async with self._turn:
            try:
                readings = await ocserv_sessions(self._control, self._namespace)
            except (OSError, ValueError) as error:  # it is being started again
                log.debug("no word about sessions: %s", error)
                self._unanswered = self._unanswered + 1 if isinstance(error, TimeoutError) else 0
                if self._unanswered == _MOST_UNANSWERED:
                    log.error("ocserv is stopped or stuck, and killed")
                    assert self._process is not None
                    self._process.kill()
            else:
                self._unanswered = 0
                self._operation.sessions.told(readings, self._names)

    async def shut(self) -> None:
        """Lets nobody log in any more, and counts the sessions that there are; raises `GatewayFolderError`."""
        self._users.admit_nobody()
        await self._count()

    async def end(self) -> None:
        if self._process is not None:
            await self._process.end()


def _endpoint(settings: Settings) -> tuple[str, int]:
    """The one host (empty for all) and port where ocserv can listen; raises `ConfigError`."""
    hosts = {host for host, _ in settings.gateway_listen}
    ports = {port for _, port in settings.gateway_listen}
    everywhere = hosts <= {"::", "0.0.0.0"}  # noqa: S104
    if len(ports) > 1 or not (everywhere or len(hosts) == 1):
        cause = "ocserv listens at one address, or all, and at one port"
        raise ConfigError(cause, "change HTCONDOR_VPN_GATEWAY_LISTEN")
    return "" if everywhere else hosts.pop(), ports.pop()


def _has_one_uid() -> bool:
    """Whether root here is one of a user namespace with no other account."""
    return sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()) == 1


def _render(**values: object) -> str:
    environment = Environment(
        loader=PackageLoader("htcondor_vpn.gateway"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  it is no HTML
    )  # fmt: skip
    return environment.get_template("ocserv.conf").render(**values)
