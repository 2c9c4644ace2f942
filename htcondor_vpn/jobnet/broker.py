"""The broker: the one process in the inner namespace that holds capabilities. It wires the jobs' networks.

It answers the wrapper and the hooks on `broker.sock` (protocol.py) and at a port (hook_port.py), and is started by the
supervisor, which it tells how many jobs there are. When the supervisor dies, nobody keeps the tunnel closed any more:
the broker kills everything in the inner namespace and ends. When the broker dies, the links, limits and counters stay
in the kernel, and the next broker takes the jobs over as their wrappers come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Optional

from htcondor_vpn.jobnet import hook_port
from htcondor_vpn.jobnet.admission import NotAllowed
from htcondor_vpn.jobnet.decisions import Decisions
from htcondor_vpn.jobnet.kept_decisions import KeptDecisions
from htcondor_vpn.jobnet.place import PilotPlace, Place
from htcondor_vpn.jobnet.policy.names import Names
from htcondor_vpn.jobnet.policy.policy import Policy
from htcondor_vpn.jobnet.protocol import Connection, Message, ProtocolError
from htcondor_vpn.jobnet.service import JobNetworks
from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.acceptor import Acceptor
from htcondor_vpn.linux.peers import Peer, peer_of
from htcondor_vpn.settings import Settings

log = logging.getLogger(__name__)

SOCKET_NAME = "broker.sock"

#: How often the broker says that it lives; seldom, for it costs a little also where no job runs.
BEAT_SECONDS = 5.0

_REQUEST_SECONDS = 10.0
_MOST_CONNECTIONS = 1024
BACKLOG = 256

_Receiver = Callable[[Connection], Coroutine[Any, Any, Optional[tuple[Peer, Message]]]]
_Handler = Callable[[Connection, Peer, Message], Coroutine[Any, Any, None]]


def serve(
    control: socket.socket,
    settings: Settings,
    run_dir: Path,
    policy: Policy,
    memory: int,
    lead: Callable[[Collection[str]], None] = lambda _: None,
) -> None:
    """Serves until `control` (SOCK_SEQPACKET, JSON messages) ends, which means that the pilot ends, or that
    its supervisor died.

    Call it in a process of its own, inside the inner user and network namespaces with all capabilities there. The
    `policy` decides for the jobs; `memory` is the descriptor of a file that is kept for the next broker. The
    supervisor sends `{"families": […]}`, at first and when there are more of them, and `lead` brings them to where they
    are carried; it gets `{"ready": true}` once, `{"jobs": n}` when that changes, and `{"lives": true}` every
    `BEAT_SECONDS`. Raises OSError when the socket or the namespaces cannot be used.
    """
    inner = _own_user_namespace()

    async def until_the_end() -> None:
        # Made inside the loop: below Python 3.10 an asyncio.Event belongs to the loop that it finds when it is made.
        place = PilotPlace(settings, run_dir, inner, lead)
        broker = Broker(control, settings, run_dir, place, policy, memory)
        broker.listen(hook_port.listen(BACKLOG), hook_port.receive)
        await broker.run()

    policy.open()
    asyncio.run(until_the_end())
    killed = ancestry.kill_within(inner, spare={os.getpid()})
    log.info("the pilot ends: killed %d processes inside", killed)


def _own_user_namespace() -> ancestry.Identity:
    status = os.stat("/proc/self/ns/user")
    return status.st_dev, status.st_ino


class Broker:
    """The socket, the channel to who has it run, and the connections; `JobNetworks` does what they ask for.

    The socket is for every account if `public`: then it is the place that tells whom it serves.
    """

    def __init__(
        self,
        control: socket.socket,
        settings: Settings,
        run_dir: Path,
        place: Place,
        policy: Policy,
        memory: int,
        public: bool = False,
    ) -> None:
        self._control, self._place = control, place
        self._path, self._mode = run_dir / SOCKET_NAME, 0o666 if public else 0o600
        self._policy, self._policy_lives = policy, True
        decisions = Decisions(policy, KeptDecisions(memory, policy.restored), Names(), place.networks)
        self.networks = JobNetworks(settings, run_dir, place, decisions, self._tell_jobs)
        self._handlers: dict[str, _Handler] = {
            "prepare": self.networks.prepare,
            "update": self.networks.update,
            "start": self.networks.start,
            "resume": self.networks.resume,
            "join": self.networks.join,
        }
        self._connections: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._doors: list[tuple[socket.socket, _Receiver]] = []
        self._acceptors: list[Acceptor] = []
        self._beating: asyncio.TimerHandle | None = None

    def listen(self, listener: socket.socket, receive: _Receiver) -> None:
        """Has `run` serve one more listening socket too."""
        self._doors.append((listener, receive))

    async def run(self) -> None:
        """Serves until the supervisor's channel ends; raises RuntimeError when nobody decides for jobs any more."""
        loop = asyncio.get_running_loop()
        self._control.setblocking(False)
        self.networks.open()
        self._policy.watch(self._policy_died)
        doors = [(self._listen(), self._receive), *self._doors]
        try:
            loop.add_reader(self._control.fileno(), self._hear_supervisor)
            for listener, receive in doors:
                self._acceptors.append(Acceptor(listener, partial(self._accepted, receive)))
            self._tell_supervisor({"ready": True})
            self._beat()
            await self._ended.wait()
            if not self._policy_lives:
                raise RuntimeError("the policy's process was killed")  # the next broker makes another one
            self._policy.close()
            self.networks.close()
        finally:
            if self._beating is not None:
                self._beating.cancel()
            loop.remove_reader(self._control.fileno())
            for acceptor in self._acceptors:
                acceptor.close()
            for listener, _ in doors:
                listener.close()

    def _beat(self) -> None:
        with suppress(OSError):  # the supervisor is stopped, or gone, which is heard elsewhere
            self._control.send(json.dumps({"lives": True}).encode())
        self._beating = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _policy_died(self) -> None:
        self._policy_lives = False
        self._ended.set()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            self._path.unlink()
        listener.bind(str(self._path))
        self._path.chmod(self._mode)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener

    def _hear_supervisor(self) -> None:
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            log.error("the supervisor's channel broke: %s", error)
            data = b""
        if not data:
            self._ended.set()
            return
        message = json.loads(data)
        if "families" in message and isinstance(self._place, PilotPlace):
            try:
                self._place.carried(message["families"])
            except OSError as error:
                log.error("what the tunnel carries is not led there: %s", error)

    def _tell_supervisor(self, message: object) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError as error:  # its end is heard by the reader; a full channel loses no state worth waiting for
            log.warning("the supervisor could not be told %s: %s", message, error)

    def _tell_jobs(self, count: int) -> None:
        self._tell_supervisor({"jobs": count})

    def _accepted(self, receive: _Receiver, sock: socket.socket) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            log.error("the broker has %d connections and takes no more", len(self._connections))
            sock.close()
            return
        task = asyncio.ensure_future(self._serve(Connection(sock), receive))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _receive(self, connection: Connection) -> tuple[Peer, Message] | None:
        """Receives who asks and what; None at the end. Raises `NotAllowed`, `ProtocolError` and OSError."""
        peer = peer_of(connection.socket)
        self._place.require_account(peer)
        message = await connection.receive()
        return None if message is None else (peer, message)

    async def _serve(self, connection: Connection, receive: _Receiver) -> None:
        """Serves one connection; whatever a client does, it ends with a line in the log at worst."""
        try:
            received = await asyncio.wait_for(receive(connection), _REQUEST_SECONDS)
            if received is None:
                return
            peer, message = received
            handler = self._handlers.get(message.verb)
            if handler is None:
                raise ProtocolError(f"there is no {message.verb[:20]} message")
            await handler(connection, peer, message)
        except (NotAllowed, ProtocolError) as error:
            log.warning("refused a request: %s", error)
            await _answer_no(connection, str(error))
        except asyncio.TimeoutError:
            log.warning("a client took more than %g s", _REQUEST_SECONDS)
        except OSError as error:
            log.warning("a request failed: %s", error)
            await _answer_no(connection, str(error))
        except Exception:
            log.exception("a request failed for a reason that nobody thought of")
            await _answer_no(connection, "the broker failed; its log says why")
        finally:
            connection.close()


async def _answer_no(connection: Connection, reason: str) -> None:
    answer = Message("no", {"reason": " ".join(reason.split())})
    with suppress(OSError, asyncio.TimeoutError):  # whom we refuse may be gone
        await asyncio.wait_for(connection.send(answer), _REQUEST_SECONDS)
