"""USER_JOB_WRAPPER: gives a job its own network, runs it, and sees to it that its traffic is in the job ad at the end.

Started as `RUN_DIR/libexec/job-wrapper COMMAND ARGUMENT…`, a copy of this file with the interpreter's `-IS` in its
first line. It makes a user and a network namespace of its own, has the broker wire them (protocol.py), and only then
runs the job: without its network no job runs. The job's exit code, or death by a signal, becomes the wrapper's own.

The job runs with the same uid and without any capability. The wrapper keeps those it has in the job's namespaces: they
are why the job cannot trace it or open its descriptors, although it has the same uid (ptrace(2)).

When the job cannot be run, one line says so on stderr and in the file that HTCondor names for that; the starter then
gives the job back to the queue with that line in the job's event log. The codes are those of sysexits.h: 71 no
namespaces, 75 no network, and 126 or 127 as the shells use them.

What runs once per job is fast: `_socket` and `_signal` are what `socket` and `signal` wrap, and save half of the time
that the interpreter takes to start.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `typing` would say, without the time that its import takes
    import signal as _signal
    from collections.abc import Callable, Iterable

    Fields = Iterable[tuple[str, str]]
else:
    import _signal

START_SECONDS = 20.0
END_SECONDS = 5.0
RETRY_SECONDS = 0.05
DELIVERY_SECONDS = 10.0
DELIVERY_POLL_SECONDS = 0.01

#: FIN_WAIT1, LAST_ACK and CLOSING, as `/proc/net/tcp` has them (include/net/tcp_states.h).
UNSENT_STATES = ("04", "09", "0B")
LONGEST_ANSWER_BYTES = 65536

EX_USAGE = 64
EX_OSERR = 71
EX_TEMPFAIL = 75

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

#: All that can be caught is passed on to the job, except what the kernel sends for a fault of this very process, what
#: Python ignores for its own sake, and news of the child.
FORWARDED = _signal.valid_signals() - {
    _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGXFSZ,
    _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS,
}  # fmt: skip


class CannotRun(Exception):
    """The job cannot be run: the exit code and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Refused(Exception):
    """The broker said no."""


class Broker:
    """A connection to the broker."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket: _socket.socket | None = None
        self.descriptors: list[int] = []

    def connect(self, seconds: float) -> None:
        """Connects, again and again while a broker is being restarted; raises OSError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                sock.settimeout(max(seconds, RETRY_SECONDS))
                sock.connect(self.path)
                self.socket = sock
                return
            except OSError:
                sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)  # nothing tells when a socket's path gets a listener again

    def ask(
        self,
        verb: str,
        fields: Fields = (),
        text: str = "",
        descriptor: int | None = None,
        seconds: float = START_SECONDS,
    ) -> dict[str, str]:
        """Sends one message and returns the fields of the answer; raises `Refused` or OSError."""
        if self.socket is None:
            raise OSError("there is no connection to the broker")
        body = "".join(f"{key} {value}\n" for key, value in fields) + ("\n" + text if text else "")
        data = os.fsencode(body)
        data = f"{verb} {len(data)}\n".encode() + data
        self.socket.settimeout(seconds)
        rights = []
        if descriptor is not None:
            packed = descriptor.to_bytes(4, sys.byteorder)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        sent = self.socket.sendmsg([data], rights)
        while sent < len(data):
            sent += self.socket.send(data[sent:])
        status, answered = self._answer(self.socket)
        answer = {}
        for line in os.fsdecode(answered).splitlines():
            key, _, answer[key] = line.partition(" ")
        if status != b"ok":
            raise Refused(answer.get("reason", "the broker gave no reason"))
        return answer

    def _answer(self, sock: _socket.socket) -> tuple[bytes, bytes]:
        received = b""
        while True:
            header, end, body = received.partition(b"\n")
            if end:
                status, _, length = header.partition(b" ")
                if len(body) >= int(length):
                    return status, body
            if len(received) > LONGEST_ANSWER_BYTES:
                raise OSError("the broker's answer is too long")
            data, control, _, _ = sock.recvmsg(65536, 256)
            if not data:
                raise OSError("the broker closed the connection")
            for _, _, rights in control:
                for at in range(0, len(rights) - 3, 4):
                    self.descriptors.append(int.from_bytes(rights[at : at + 4], sys.byteorder))
            received += data

    def close(self) -> None:
        """Closes the connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def kernel(name: str, *arguments: int) -> None:
    """Calls unshare(2) or setns(2): from `os` where Python has it (3.12), else through libc. Raises OSError."""
    if hasattr(os, name):
        getattr(os, name)(*arguments)
        return
    import ctypes  # two milliseconds, so only where it is needed

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_namespaces() -> None:
    """Makes the user and network namespace, with the same uid and gid inside as outside."""
    uid, gid = os.getuid(), os.getgid()
    try:
        kernel("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise CannotRun(EX_OSERR, f"the job's namespaces cannot be made: {error}") from error


def chirp_config() -> str:
    """What the starter wrote for condor_chirp, on one line, or an empty text."""
    try:
        with open(os.environ.get("_CONDOR_CHIRP_CONFIG", "")) as file:
            return " ".join(file.read(4096).split())
    except OSError:
        return ""  # the job cannot chirp then, with or without its own network


def requests_of_job() -> str:
    """The lines of the job ad by which it may ask for something, and its name.

    Raises `CannotRun` when the ad cannot be read.
    """
    path = os.environ.get("_CONDOR_JOB_AD")
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(b"".join(line for line in file if line.lower().startswith((b"vpn", b"globaljobid"))))
    except OSError as error:
        raise CannotRun(EX_TEMPFAIL, f"the job ad cannot be read: {error}") from error


class Job:
    """The job as a child process."""

    def __init__(self, command: list[str]) -> None:
        """Starts `command`; raises `CannotRun` when it cannot be executed."""
        self.wakeup, self._wakeup_end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self._wakeup_end, False)
        _signal.set_wakeup_fd(self._wakeup_end)
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        self._caught = [n for n in (*FORWARDED, _signal.SIGCHLD) if _signal.getsignal(n) != _signal.SIG_IGN]
        for number in self._caught:
            _signal.signal(number, _no_handler)
        failed, failure = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _execute(command, self._caught, before, failure)
        os.close(failure)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        reason = os.read(failed, 4096)  # ends when the job is executed
        os.close(failed)
        if reason:
            os.waitpid(self.pid, 0)
            error = int(reason)
            code = 127 if error == 2 else 126  # ENOENT
            raise CannotRun(code, f"{command[0]} cannot be executed: {os.strerror(error)}")

    def signals(self) -> bytes:
        """The signals that have come since the last call."""
        try:
            return os.read(self.wakeup, 4096)
        except BlockingIOError:
            return b""

    def status(self) -> int | None:
        """The wait status, None while the job runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None


def _no_handler(number: int, frame: object) -> None:
    """The wakeup descriptor tells the loop in `run`."""


def _execute(command: list[str], caught: Iterable[int], mask: set[int], failure: int) -> None:
    """Becomes the job, in the child: signals as the starter had them, before Python changed any."""
    try:
        for number in (*caught, _signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.set_wakeup_fd(-1)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(127)


def run(command: list[str], path: str) -> int:
    """Runs a job in a network of its own and returns its wait status; raises `CannotRun`."""
    starter = os.getppid()
    chirp, requests = chirp_config(), requests_of_job()
    make_namespaces()
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    broker = Broker(path)
    try:
        broker.connect(START_SECONDS)
        answer = broker.ask("start", [("chirp", chirp)], requests, namespace)
    except (OSError, Refused) as error:
        raise CannotRun(EX_TEMPFAIL, f"the job has no network: {error}") from error
    lease = [("number", answer["number"]), ("starter", str(starter)), ("chirp", chirp)]
    try:
        try:
            job = Job([*filter(None, [answer.get("chain")]), *command])
        except CannotRun as error:
            failed(broker, error.reason)
            raise
        status = wait(job, broker, lambda: resume(broker, lease, namespace, 0))
        deliver(job)
        return status
    finally:
        end(broker, lease, namespace)


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
                os.kill(job.pid, number)
        status = job.status()
        if status is not None:
            return status
        if broker.socket is None:
            try:
                reconnect()
            except CannotRun:
                os.kill(job.pid, _signal.SIGKILL)
                os.waitpid(job.pid, 0)
                raise
        elif broker.socket.fileno() in ready:
            broker.close()  # the broker never speaks first: it has gone


def deliver(job: Job) -> None:
    """Waits for what the job sent last: its connections end with its network, which goes when this process does.

    Not longer than `DELIVERY_SECONDS`, nor when a signal says that there is no time.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while unsent() and time.monotonic() < deadline and not job.signals().strip(bytes([_signal.SIGCHLD])):
        time.sleep(DELIVERY_POLL_SECONDS)  # nothing tells when a connection without a process has delivered


def unsent() -> bool:
    """Whether a connection that its process has closed still has something to send: proc(5), `/proc/net/tcp`."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}") as file:
                if any(line.split(None, 4)[3] in UNSENT_STATES for line in file):
                    return True
        except OSError:
            continue  # a kernel without IPv6
    return False


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
                broker.ask("end", seconds=END_SECONDS)
                return
        except OSError as error:
            broker.close()
            reason = error
        except (Refused, CannotRun) as error:
            reason = error
            break
    complain(f"the job's traffic may be missing in its ad: {reason}")


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
        command = [*filter(None, [answer.get("chain")]), *command]
        os.execvp(command[0], command)
    except OSError as error:
        raise CannotRun(EX_OSERR, f"{command[0]} cannot be run in the job's network: {error}") from error
    return True


def leave(status: int) -> None:
    """Ends as the job did: with its exit code, or by its signal (and without a core file of our own)."""
    if os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        number = os.WTERMSIG(status)
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def complain(reason: str) -> None:
    """Says something on the job's stderr."""
    os.write(2, os.fsencode(f"htcondor-vpn: {reason}\n"))


def main(argv: list[str]) -> None:
    """Runs the wrapper and does not return."""
    if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # until the job runs: no traceback on its stderr
    run_dir = os.path.dirname(os.path.dirname(os.path.abspath(argv[0])))
    path = os.path.join(run_dir, "broker.sock")
    command = argv[1:]
    error_file = os.environ.get("_CONDOR_WRAPPER_ERROR_FILE")
    try:
        if not command:
            raise CannotRun(EX_USAGE, "the job wrapper was started without a command")
        if os.path.basename(command[0]) == "sshd":
            error_file = None  # a session that fails must not end the job
            if join(command, path):
                return
        leave(run(command, path))
    except CannotRun as error:
        complain(error.reason)
        if error_file:
            with open(error_file, "w") as file:
                file.write(error.reason + "\n")
        os._exit(error.code)


if __name__ == "__main__":
    main(sys.argv)
