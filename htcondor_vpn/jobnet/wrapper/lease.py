"""The job's hold on its network: kept while the job runs, whatever happens to the broker, and given back."""

from __future__ import annotations

import posix
import select

from htcondor_vpn.jobnet.wrapper.broker import Broker, Refused
from htcondor_vpn.jobnet.wrapper.failure import EX_TEMPFAIL, CannotRun
from htcondor_vpn.jobnet.wrapper.job import Job
from htcondor_vpn.jobnet.wrapper.surroundings import environ
from htcondor_vpn.jobnet.wrapper.text import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from htcondor_vpn.jobnet.wrapper.broker import Fields
else:
    import _signal

END_SECONDS = 5.0

#: The job's flight recorder, in its scratch folder.
FLIGHTS_FILE = "vpn-flight-recorder.json"


def resume(broker: Broker, lease: Fields, namespace: int, seconds: float) -> None:
    """Connects to a restarted broker and shows it the lease. Raises `CannotRun` when it says that it has ended."""
    try:
        broker.connect(seconds)
        broker.ask("resume", lease, descriptor=namespace, seconds=END_SECONDS)
    except OSError:
        broker.close()
    except Refused as error:
        raise CannotRun(EX_TEMPFAIL, f"the job has lost its network: {error}") from error


def wait(job: Job, broker: Broker, reconnect: Callable[[], None]) -> int:
    """Waits for the job, passes signals on to it, and keeps the lease through a restart of the broker."""
    while True:
        poll = select.poll()
        poll.register(job.wakeup, select.POLLIN)
        if broker.socket is not None:
            poll.register(broker.socket.fileno(), select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(None if broker.socket is not None else 250)]
        for number in job.signals():
            if number != _signal.SIGCHLD:
                posix.kill(job.pid, number)
        status = job.status()
        if status is not None:
            return status
        if broker.socket is None:
            try:
                reconnect()
            except CannotRun:
                posix.kill(job.pid, _signal.SIGKILL)
                posix.waitpid(job.pid, 0)
                raise
        elif broker.socket.fileno() in ready:
            broker.close()  # the broker never speaks first: it has gone


def failed(broker: Broker, reason: str) -> None:
    """Tells the broker that the job cannot be executed here, so that it is held when it comes to this pilot again."""
    try:
        broker.ask("failed", text=reason, seconds=END_SECONDS)
    except (OSError, Refused):
        broker.close()


def end(broker: Broker, lease: Fields, namespace: int) -> None:
    """Tells the broker that the job has ended, and waits until the totals are with the starter."""
    reason: object = "no broker answers"
    for _ in range(2):  # the second time to a broker that replaced the first one just now
        try:
            if broker.socket is None:
                resume(broker, lease, namespace, END_SECONDS)
            if broker.socket is not None:
                keep_flights(broker.ask("end", seconds=END_SECONDS).get("flights"))
                return
        except OSError as error:
            broker.close()
            reason = error
        except (Refused, CannotRun) as error:
            reason = error
            break
    complain(f"the job's traffic may be missing in its ad: {reason}")


def keep_flights(flights: str | None) -> None:
    """Writes the job's flight recorder, if it has one, where its output is taken from."""
    folder = environ.get("_CONDOR_SCRATCH_DIR")
    if flights and folder:
        try:
            with open(f"{folder}/{FLIGHTS_FILE}", "w") as file:
                file.write(flights + "\n")
        except OSError as error:
            complain(f"{FLIGHTS_FILE} cannot be written: {error.strerror}")
