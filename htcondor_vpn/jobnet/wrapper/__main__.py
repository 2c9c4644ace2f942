"""The wrapper's program: a job, or a session of condor_ssh_to_job in a job's network."""

from __future__ import annotations

import posix
import sys

from htcondor_vpn.jobnet.wrapper.broker import START_SECONDS, Broker, Refused
from htcondor_vpn.jobnet.wrapper.delivery import deliver, tcp_sockets
from htcondor_vpn.jobnet.wrapper.failure import EX_OSERR, EX_TEMPFAIL, EX_USAGE, CannotRun
from htcondor_vpn.jobnet.wrapper.job import Job, leave
from htcondor_vpn.jobnet.wrapper.lease import end, failed, resume, wait
from htcondor_vpn.jobnet.wrapper.namespaces import CLONE_NEWNET, CLONE_NEWUSER, gain_nothing, kernel, make_namespaces
from htcondor_vpn.jobnet.wrapper.surroundings import chained, chirp_config, environ, job_environment, requests_of_job
from htcondor_vpn.jobnet.wrapper.text import complain, write_reason

TYPE_CHECKING = False
if TYPE_CHECKING:  # which knows the module by this name
    import signal as _signal
else:
    import _signal


def run(command: list[str], path: str) -> int:
    """Runs a job in a network of its own and returns its wait status; raises `CannotRun`."""
    starter = posix.getppid()
    chirp, requests, slot = chirp_config(), requests_of_job(), environ.get("_CONDOR_SLOT", "")
    make_namespaces()
    gain_nothing()
    namespace = posix.open("/proc/self/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)
    broker = Broker(path)
    try:
        broker.connect(START_SECONDS)
        answer = broker.ask("start", [("chirp", chirp), ("slot", slot)], requests, namespace)
    except (OSError, Refused) as error:
        raise CannotRun(EX_TEMPFAIL, f"the job has no network: {error}") from error
    lease = [("number", answer["number"]), ("starter", str(starter)), ("chirp", chirp)]
    before = tcp_sockets()
    job_environment()
    try:
        try:
            job = Job([*chained(answer), *command])
        except CannotRun as error:
            failed(broker, error.reason)
            raise
        status = wait(job, broker, lambda: resume(broker, lease, namespace, 0))
        deliver(job, before)
        return status
    finally:
        end(broker, lease, namespace)


def join(command: list[str], path: str) -> bool:
    """Runs sshd in the network of the job it belongs to. Returns False when there is none; raises `CannotRun`."""
    broker = Broker(path)
    try:
        broker.connect(START_SECONDS)
        answer = broker.ask("join")
    except Refused:
        broker.close()
        return False
    except OSError as error:
        raise CannotRun(EX_TEMPFAIL, f"the job's network cannot be joined: {error}") from error
    broker.close()
    user_namespace, network_namespace = broker.descriptors
    try:
        kernel("setns", user_namespace, CLONE_NEWUSER)
        kernel("setns", network_namespace, CLONE_NEWNET)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        job_environment()
        gain_nothing()
        command = [*chained(answer), *command]
        import os

        os.execvpe(command[0], command, environ)
    except OSError as error:
        raise CannotRun(EX_OSERR, f"{command[0]} cannot be run in the job's network: {error}") from error
    return True


def main(argv: list[str]) -> None:
    """Runs the wrapper and does not return."""
    if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # until the job runs: no traceback on its stderr
    program = argv[0] if argv[0].startswith("/") else f"{posix.getcwd()}/{argv[0]}"
    path = program.rsplit("/", 2)[0] + "/broker.sock"
    command = argv[1:]
    error_file = environ.get("_CONDOR_WRAPPER_ERROR_FILE")
    try:
        if not command:
            raise CannotRun(EX_USAGE, "the job wrapper was started without a command")
        if command[0].rpartition("/")[2] == "sshd":
            error_file = None  # a session that fails must not end the job
            if join(command, path):
                return
        leave(run(command, path))
    except CannotRun as error:
        complain(error.reason)
        if error_file:
            write_reason(error_file, error.reason)
        posix._exit(error.code)


if __name__ == "__main__":
    main(sys.argv)
