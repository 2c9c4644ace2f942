"""The process above a gateway's workers: it makes them, watches them, and alone hears the operator.

It serves no connection itself, so that nothing that a pilot sends reaches the one process whose death ends all others.
Workers share its listening sockets: one that dies takes its own flows with it, and is replaced; the others, and the
connections that wait in the sockets' queues, do not notice. One that is stopped or stuck takes no new connections, and
is killed when it stays so.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from importlib.metadata import version

from htcondor_vpn.errors import LimitReached, VpnError, by_name
from htcondor_vpn.gateway.operation.allocation import PERIOD_SECONDS, Allocator
from htcondor_vpn.gateway.operation.control import Answer, ControlSocket, reply
from htcondor_vpn.gateway.operation.inheritance import Heir, Inheritance, execute_anew
from htcondor_vpn.gateway.operation.ledger_link import LedgerLink
from htcondor_vpn.gateway.operation.restart import Restart
from htcondor_vpn.gateway.operation.seats import COLUMNS
from htcondor_vpn.gateway.operation.shares import Rates
from htcondor_vpn.gateway.operation.tally import Tally
from htcondor_vpn.gateway.operation.worker import Equipment, batches, work
from htcondor_vpn.gateway.operation.worker_link import WorkerLink
from htcondor_vpn.gateway.service_manager import notify
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import Child, fork_child
from htcondor_vpn.linux.loop import Loop
from htcondor_vpn.linux.signals import SignalDescriptor

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_START_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Parent:
    """`run` returns when the gateway has ended; `announce` is called with its `lines` once connections are served."""

    def __init__(
        self, equipment: Equipment, announce: Callable[[], None], inheritance: Inheritance | None = None
    ) -> None:
        self._equipment, self._announce = equipment, announce
        self._allocator = Allocator(equipment.rates)
        self._generation = 1 if inheritance is None else inheritance.generation + 1
        self._started = time.time() if inheritance is None else inheritance.started
        self._loop, self._tally = Loop(), Tally()
        settings = equipment.settings
        bounds = settings.gateway_ledger_keep, settings.gateway_ledger_flows
        self._ledger = LedgerLink(self._loop, settings.gateway_dir, *bounds)
        self._workers: list[WorkerLink] = []
        self._failure: VpnError | None = None
        self._stopping = self._draining = self._running = False
        self._pause = _FIRST_PAUSE_SECONDS
        self._restart = Restart(self._loop, lambda: self._ending, self._execute_anew, self._ledger.reopen)
        self._control: ControlSocket | None = None
        inherits_control = inheritance is not None and inheritance.control >= 0
        self._former_control = inheritance.control if inheritance is not None and inherits_control else None
        self._signals = SignalDescriptor(_SIGNALS)
        self._loop.watch(self._signals, self._signalled)
        for heir in inheritance.workers if inheritance is not None else ():
            channel = Channel(socket.socket(fileno=heir.channel))
            child = Child("worker", heir.pid, os.pidfd_open(heir.pid), channel)
            self._adopt(WorkerLink(child, heir.column, retired=True))

    def run(self) -> None:
        """Makes the workers and keeps them until the gateway was told to end, and they have; raises `VpnError`."""
        for _ in range(self._equipment.processes):
            self._start_worker()
        started = self._loop.run_until(lambda: self._failure is not None or self._all_ready(), _START_SECONDS)
        if self._failure is not None or not started:
            for worker in self._workers:
                os.kill(worker.child.pid, signal.SIGKILL)
            self._loop.run_until(lambda: not self._workers, _START_SECONDS)
            raise self._failure or LimitReached("the gateway's processes do not start", "see what the machine is at")
        self._running = True
        folder = self._equipment.settings.gateway_dir
        self._control = ControlSocket(folder, self._loop, self._asked, self._former_control)
        for worker in self._workers:
            if worker.retired:
                worker.tell({"retire": True})
        self._announce()
        notify("READY=1", f"STATUS=serving with {self._equipment.processes} workers")
        self._tick()
        if self._equipment.rates != Rates():
            self._allocate()
        self._loop.run_until(lambda: not self._workers and self._ending)
        self._control.close()
        self._ledger.close()

    # Workers

    def _all_ready(self) -> bool:
        return all(worker.ready for worker in self._workers if not worker.retired) or self._ending

    @property
    def _ending(self) -> bool:
        return self._stopping or self._draining

    def _start_worker(self) -> None:
        if self._ending:
            return
        taken = {worker.column for worker in self._workers}
        column = next((column for column in range(COLUMNS) if column not in taken), None)
        if column is None:
            log.error("there are %d processes: no further one is started until one of them has ended", COLUMNS)
            self._loop.after(_LAST_PAUSE_SECONDS, self._start_worker)
            return
        shared, listeners = (self._equipment.seats, self._equipment.allowances), self._equipment.listeners
        keep = [*(each.descriptor for each in shared), *(listener.fileno() for listener in listeners)]
        try:
            child = fork_child("worker", lambda channel: work(self._equipment, column, channel), (), keep)
        except OSError as error:
            log.error("a worker cannot be started: %s", error.strerror)
            self._start_later()
            return
        self._adopt(WorkerLink(child, column))

    def _start_later(self) -> None:
        self._loop.after(self._pause, self._start_worker)
        self._pause = min(2 * self._pause, _LAST_PAUSE_SECONDS)

    def _adopt(self, worker: WorkerLink) -> None:
        worker.child.channel.sock.setblocking(False)
        self._workers.append(worker)
        self._loop.watch(worker.child.channel, lambda: self._heard(worker))
        self._loop.watch(worker.child.pidfd, lambda: self._ended(worker))

    def _heard(self, worker: WorkerLink) -> None:
        try:
            received = worker.child.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            self._loop.forget(worker.child.channel)
            return
        message, _ = received
        if "ready" in message:
            worker.ready = True
        if "flows" in message:
            worker.heard(message)
        if "sums" in message:
            self._tally.add(worker.child.pid, message["sums"])
        if "needs" in message:
            self._allocator.heard(worker.child.pid, message["needs"], more=message["more"])
        if "records" in message:
            self._ledger.tell({"records": message["records"]})
        if "error" in message:
            error = by_name(message["error"], message["cause"], message["remedy"])
            if self._running:
                log.error("%s", error)
            self._failure = self._failure or error

    def _ended(self, worker: WorkerLink) -> None:
        while self._loop.watches(worker.child.channel):  # its last words come before its end
            self._heard(worker)
        self._loop.forget(worker.child.pidfd)
        status = worker.child.reap()
        self._workers.remove(worker)
        self._equipment.seats.clear(worker.column)
        self._tally.gone(worker.child.pid)
        self._allocator.gone(worker.child.pid)
        self._ledger.tell({"gone": worker.instance})
        if worker.retired or self._ending:
            return
        code = os.waitstatus_to_exitcode(status)
        log.error("worker %d ended (%s), and with it its %d flows", worker.child.pid, _end(code), worker.flows)
        if not self._running:
            self._failure = self._failure or LimitReached("the gateway's processes do not start", "see its log")
            return
        if worker.is_steady:
            self._pause = _FIRST_PAUSE_SECONDS
        self._start_later()

    def _tick(self) -> None:
        """Tells the workers how the gateway stands."""
        self._tally.tick()
        standing = {"flows": self._flows(), "load": self._load(), "draining": self._draining}
        for worker in self._workers:
            worker.tell({"standing": standing})
            worker.look()
        self._loop.after(_TICK_SECONDS, self._tick)

    def _allocate(self) -> None:
        """Tells the workers at which rates they may carry whose bytes."""
        rates = self._allocator.rates()
        for worker in self._workers:
            for batch in batches(rates.get(worker.child.pid, ())):
                worker.tell({"rates": batch})
        self._loop.after(PERIOD_SECONDS, self._allocate)

    def _flows(self) -> int:
        return sum(worker.flows for worker in self._workers)

    def _load(self) -> float:
        """How busy it is, 0 to 1: the processes that take new connections, or the rates that it is allowed."""
        loads = [worker.load for worker in self._workers if not worker.retired]
        up, down = self._equipment.rates.total
        total = self._tally.total
        return min(1.0, max(sum(loads) / max(1, len(loads)), total.up_bps / 8 / up, total.down_bps / 8 / down))

    # What it is told to do

    def _signalled(self) -> None:
        for received in self._signals.read():
            if received.number is signal.SIGUSR1:
                self._drain(None)
            elif received.number is signal.SIGUSR2:
                self._restart.begin(None)
            else:
                self._stop()

    def _asked(self, request: Answer, channel: Channel) -> None:
        what = request["do"]
        if what == "status":
            reply(channel, self._status())
        elif what == "drain":
            self._drain(request.get("timeout_seconds"))
            reply(channel, {"flows": self._flows()})
        elif what == "restart":
            self._restart.begin(channel)

    def _stop(self) -> None:
        """Ends the gateway, flows within the grace period; at the second time at once."""
        self._stopping = True
        notify("STOPPING=1")
        for listener in self._equipment.listeners:
            listener.close()
        for worker in self._workers:
            worker.tell({"stop": True})

    def _drain(self, timeout_seconds: float | None) -> None:
        """Begins no flow, and ends the gateway when the last has ended, or was cut after the time."""
        if timeout_seconds is not None:
            self._loop.after(timeout_seconds, self._cut)
        if self._ending:
            return
        log.info("draining: %d flows go on", self._flows())
        self._draining = True
        notify("STATUS=draining")
        for worker in self._workers:
            worker.tell({"drain": True})

    def _cut(self) -> None:
        if not self._stopping:
            self._stop()
        self._stop()

    def _execute_anew(self) -> None:
        self._ledger.close()  # the new program has a writer of its own
        execute_anew(
            Inheritance(
                [listener.fileno() for listener in self._equipment.listeners], self._equipment.seats.descriptor,
                [Heir(each.child.pid, each.child.channel.fileno(), each.column) for each in self._workers],
                self._generation, self._started, -1 if self._control is None else self._control.fileno(),
            )
        )  # fmt: skip

    # What it tells

    def _status(self) -> Answer:
        limits, settings = self._equipment.limits, self._equipment.settings
        total = self._tally.total.as_json()
        return {
            "version": version("htcondor-vpn"), "pid": os.getpid(), "generation": self._generation,
            "started": round(self._started, 3), "uptime_seconds": round(time.time() - self._started, 1),
            "draining": self._draining, "stopping": self._stopping,
            "load": round(max(self._load(), self._equipment.seats.total() / limits.connections), 3),
            "connections": self._equipment.seats.total(),
            "limits": {
                "connections": limits.connections, "connections_per_token": limits.connections_per_token,
                "up_mbps": settings.gateway_up_mbps, "down_mbps": settings.gateway_down_mbps,
                "pilot_up_mbps": settings.gateway_pilot_up_mbps, "pilot_down_mbps": settings.gateway_pilot_down_mbps,
            },
            "ledger": self._ledger.state,
            **total, "flows": self._flows(),
            "workers": [
                {"pid": worker.child.pid, "flows": worker.flows, "load": round(worker.load, 3),
                 "connections": self._equipment.seats.in_column(worker.column),
                 "memory_bytes": worker.memory_bytes, "retired": worker.retired}
                for worker in self._workers
            ],
            "pilots": {name: count.as_json() for name, count in sorted(self._tally.pilots.items())},
        }  # fmt: skip


def _end(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {-code}"


