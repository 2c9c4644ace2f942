"""Keeps a pilot's processes: the engine, the broker, COMMAND. Starts again what may be, and ends all when COMMAND ends.

One thread, one loop. The order of a start: engine and broker are forked; the broker makes the namespaces while the
engine looks for a gateway; the broker sets the catcher up for what the gateway carries; the engine gets its sockets;
COMMAND starts. Whoever of them dies later than that is started again, except COMMAND.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from htcondor_vpn.errors import (
    GatewayUntrusted,
    LoginRefused,
    ProxyRefused,
    SshRefused,
    TokenRefused,
    VpnError,
)
from htcondor_vpn.jobnet.broker import BEAT_SECONDS as BROKER_BEAT_SECONDS
from htcondor_vpn.jobnet.policy.source import Source
from htcondor_vpn.linux.ancestry import processes_within
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import Child, fork_child
from htcondor_vpn.linux.heartbeat import BEAT_SECONDS, Heartbeat
from htcondor_vpn.linux.loop import Loop
from htcondor_vpn.linux.signals import SignalDescriptor
from htcondor_vpn.pilot import inner
from htcondor_vpn.pilot.children import Children
from htcondor_vpn.pilot.command import Command, start_command
from htcondor_vpn.pilot.engine_process import run_engine
from htcondor_vpn.pilot.kept_child import KeptChild
from htcondor_vpn.pilot.run_folder import ENVIRONMENT_VARIABLE, RunFolder
from htcondor_vpn.pilot.states import TunnelState
from htcondor_vpn.pilot.status import TunnelStatus
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.engine import Engine, EngineReport, InnerSockets

FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGCONT,
        signal.SIGWINCH,
    }
)
#: Those that end a pilot, in order.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_STATE_SECONDS = 10.0
#: After so many looks without a word of the engine the tunnel counts as down; then it is made to go on, at last it is
#: killed. Its workers carry the flows that there are all the while, and these end with it.
_SILENT_LOOKS, _CONTINUE_LOOKS, _MOST_LOOKS = 7, 10, 30
#: The broker's, which are rarer.
_BROKER_CONTINUE_LOOKS, _BROKER_MOST_LOOKS = 2, 12
_ENDINGS = 3
_FINAL = (GatewayUntrusted, TokenRefused, ProxyRefused, SshRefused, LoginRefused)

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal ended the start, before COMMAND ran."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Supervisor:
    """One pilot. `signals` are `FORWARDED` and SIGCHLD; `make_engine` makes the engine, in its process, which is called
    `engine_name` until it says of which kind it is; `nft` is the path of that program; `rules` is the jobs' policy,
    None without a policy file.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        signals: SignalDescriptor,
        engine_name: str,
        make_engine: Callable[[], Engine],
        nft: str,
        rules: Source | None,
    ) -> None:
        self._settings, self._folder, self._signals, self._nft, self._rules = settings, folder, signals, nft, rules
        #: What a broker has to know of the one before; without a name, so that no job can change it.
        self._memory = os.memfd_create("decisions")
        self._make_engine = make_engine
        self._loop = Loop()
        self._children = Children(self._loop)
        self._tunnel = TunnelStatus(folder.path, engine_name)
        self._engine = KeptChild(
            self._children,
            Heartbeat("engine", _CONTINUE_LOOKS, _MOST_LOOKS),
            self._fork_engine,
            self._engine_said,
            self._engine_died,
        )
        self._broker = KeptChild(
            self._children,
            Heartbeat("broker", _BROKER_CONTINUE_LOOKS, _BROKER_MOST_LOOKS),
            self._fork_broker,
            self._broker_said,
            self._broker_died,
        )
        self._command: Command | None = None
        self._namespaces: inner.InnerNamespaces | None = None
        self._sockets: InnerSockets | None = None
        self._families: tuple[str, ...] = ()
        self._udp = False
        self._broker_ready = self._catching = False
        self._status: int | None = None
        self._hurried = False

    def run(self, argv: Sequence[str], environment: Mapping[str, str]) -> int:
        """Runs `argv` inside, once the tunnel is up, and returns its wait status.

        Raises VpnError where it could not be started, and `Interrupted` where a signal came first.
        """
        self._loop.watch(self._signals, self._signalled)
        try:
            self._tunnel.enter(TunnelState.STARTING)
            self._broker.start()
            self._engine.start()
            self._tunnel.enter(TunnelState.CONNECTING)
            self._wait_until_ready()
            assert self._namespaces is not None
            environment = {**environment, ENVIRONMENT_VARIABLE: str(self._folder.path)}
            self._command = start_command(argv, self._namespaces, environment, self._signals)
            self._children.keep(self._command.pid)
            self._children.lenient = True
            self._loop.watch(self._command.pidfd, self._command_ended)
            log.info("COMMAND runs as process %d: %s", self._command.pid, argv[0])
            self._refresh_state()
            self._look_at_engine()
            self._look_at_broker()
            self._loop.run_until(lambda: self._command is None)
            self._loop.run_until(self._nobody_is_awaited, self._settings.wait_after_command)
            assert self._status is not None
            return self._status
        except (VpnError, Interrupted) as error:
            self._tunnel.reason = str(error)
            raise
        finally:
            self._end()

    def _wait_until_ready(self) -> None:
        timeout_seconds = self._settings.connect_timeout
        if self._loop.run_until(self._ready, timeout_seconds):
            return
        if self._tunnel.report.error:
            raise self._tunnel.report.exception()
        raise VpnError(f"the tunnel was not ready within {timeout_seconds:g} s", "run it with -v to see why")

    def _refresh_state(self) -> None:
        self._tunnel.refresh()
        self._loop.after(_STATE_SECONDS, self._refresh_state)

    def _ready(self) -> bool:
        return self._tunnel.state is TunnelState.UP and self._broker_ready

    def _signalled(self) -> None:
        for received in self._signals.read():
            if received.number == signal.SIGCHLD:
                self._children.reap_orphans()
            elif self._status is not None:
                self._hurried = self._hurried or received.number in ENDING
            elif self._command is None:
                if received.number in ENDING and received.number not in self._signals.ignored_before:
                    raise Interrupted(received.number)
            elif not received.by_kernel:  # a terminal's keys have reached COMMAND already, as they did us
                os.kill(self._command.pid, received.number)

    # The engine

    def _fork_engine(self) -> Child:
        sockets = self._sockets
        keep = [*self._folder.locks, *([sock.fileno() for sock in sockets.all()] if sockets else [])]
        within = self._namespaces.identity() if self._namespaces else None

        def work(channel: Channel) -> None:
            told = run_engine(channel, self._make_engine, sockets)
            inner.clear_up(channel, self._folder, told or within)

        return fork_child("engine", work, self._signals.mask_before, keep)

    def _look_at_engine(self) -> None:
        self._engine.look()
        silent_looks = self._engine.heartbeat.silent_looks
        if silent_looks >= _SILENT_LOOKS and self._tunnel.state is TunnelState.UP:
            self._tunnel.enter(
                TunnelState.DOWN, f"the engine's process has said nothing for {silent_looks} s: is it stopped?"
            )
        self._loop.after(BEAT_SECONDS, self._look_at_engine)

    def _engine_said(self, message: dict[str, Any], _descriptors: list[int]) -> None:
        if "report" not in message:
            return
        self._tunnel.report = report = EngineReport.from_message(message["report"])
        if report.up:
            self._carries(report)
            if self._sockets is not None:
                self._tunnel.enter(TunnelState.UP)
        elif self._tunnel.state in (TunnelState.UP, TunnelState.DOWN):
            self._tunnel.enter(TunnelState.DOWN, str(report.exception()))
        elif isinstance(error := report.exception(), _FINAL):
            raise error  # waiting would not mend it

    def _carries(self, report: EngineReport) -> None:
        """What was carried once is caught for good; another gateway, or the same one, may carry more by now."""
        before, self._udp = self._families, report.udp
        self._families = tuple(sorted({*before, *report.families}))
        self._catch()
        if self._families != before and self._sockets is not None:
            self._broker.tell({"families": list(self._families)})

    def _engine_died(self, status: int) -> None:
        self._must_have_started("engine", status)
        self._tunnel.forget_engine()
        self._tunnel.enter(TunnelState.DOWN, "the engine's process died and is started again")

    # The broker

    def _fork_broker(self) -> Child:
        namespaces = self._namespaces
        if namespaces is None:
            return fork_child(
                "broker",
                lambda channel: inner.make_and_serve(
                    channel, self._folder, self._settings, self._nft, self._rules, self._memory
                ),
                self._signals.mask_before,
                [self._memory, *self._folder.locks],
            )
        broker = fork_child(
            "broker",
            lambda channel: inner.enter_and_serve(
                namespaces, channel, self._folder, self._settings, self._rules, self._memory
            ),
            self._signals.mask_before,
            [*namespaces, self._memory, *self._folder.locks],
        )
        self._children.tell(broker, {"families": list(self._families)})
        return broker

    def _look_at_broker(self) -> None:
        """One that is stopped or stuck lets no job begin, and HTCondor would go on to send some."""
        self._broker.look()
        self._loop.after(BROKER_BEAT_SECONDS, self._look_at_broker)

    def _catch(self) -> None:
        """Has the catcher set up, once the namespaces exist and it is known what the gateway carries."""
        broker = self._broker.process
        if broker is not None and self._namespaces is not None and self._families and not self._catching:
            self._catching = True
            self._broker.tell({"catch": list(self._families), "udp": self._udp})

    def _broker_said(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "made" in message:
            assert self._broker.process is not None
            try:
                self._namespaces = inner.InnerNamespaces.of(self._broker.process.pid)
            except (FileNotFoundError, ProcessLookupError):
                return  # it has died meanwhile, and its pidfd says so
            self._catch()
        elif "kinds" in message:
            self._sockets = InnerSockets.adopt(descriptors, message["kinds"])
            self._tunnel.holds_connects = bool(self._sockets.queues)
            self._broker.tell({"families": list(self._families)})
            assert self._namespaces is not None
            self._engine.tell({"kinds": message["kinds"], "inner": self._namespaces.identity()}, descriptors)
            if self._tunnel.report.up:
                self._tunnel.enter(TunnelState.UP)
        elif "ready" in message:
            self._broker_ready = True
        elif "jobs" in message:
            self._tunnel.jobs = message["jobs"]

    def _broker_died(self, status: int) -> None:
        self._must_have_started("broker", status)
        log.error("the broker died (wait status %d) and is started again; jobs go on", status)

    # Both, and COMMAND

    def _must_have_started(self, name: str, status: int) -> None:
        if not self._children.lenient:
            raise VpnError(f"the {name} died at its start (wait status {status})", "run it with -v to see why")

    def _command_ended(self) -> None:
        assert self._command is not None
        self._loop.forget(self._command.pidfd)
        self._status = self._command.reap()
        self._children.let_go(self._command.pid)
        log.info("COMMAND ended with wait status %d", self._status)
        self._command = None

    def _nobody_is_awaited(self) -> bool:
        """Whether all that COMMAND left running has ended, or we were told not to wait for it.

        What ends there becomes our child before it does, so that SIGCHLD has us look again.
        """
        assert self._namespaces is not None
        ours = () if self._broker.process is None else (self._broker.process.pid,)
        return self._hurried or all(pid in ours for pid in processes_within(self._namespaces.identity()))

    # The end

    def _end(self) -> None:
        """Ends everything, in any state of it: the broker kills what lives inside, and the engine goes last."""
        reason = self._tunnel.reason
        self._tunnel.enter(TunnelState.STOPPING, reason)
        if self._command is not None:  # only where this process itself failed
            os.kill(self._command.pid, signal.SIGKILL)
            self._command.reap()
            self._children.let_go(self._command.pid)
        self._clear_inside()
        if self._engine.process is not None:
            self._engine.end()
        self._tunnel.enter(TunnelState.FAILED if self._status is None else TunnelState.STOPPED, reason)
        for sock in self._sockets.all() if self._sockets else ():
            sock.close()
        if self._namespaces is not None:
            self._namespaces.close()
        self._children.reap_orphans()

    def _clear_inside(self) -> None:
        """Has the broker kill what lives inside; one that dies before it is done leaves that to another one."""
        for _ in range(_ENDINGS):
            try:
                if self._broker.process is None:
                    if self._namespaces is None or self._status is None:
                        return  # there was no COMMAND, which could have left something
                    self._broker.start()
                if self._broker.end():
                    return
            except OSError as error:
                log.error("the broker cannot be started: %s", error)
        log.error("not everything that COMMAND left inside was ended")
