"""USER_JOB_WRAPPER: gives a job its own network, runs it, and sees to it that its traffic is in the job ad at the end.

Started as `RUN_DIR/libexec/job-wrapper COMMAND ARGUMENT…`, which runs the compiled form of this file with the
interpreter's `-IS`. It makes a user and a network namespace of its own, has the broker wire them (protocol.py), and
only then runs the job: without its network no job runs. The job's exit code, or death by a signal, becomes the
wrapper's own.

The job runs with the same uid and without any capability. The wrapper keeps those it has in the job's namespaces: they
are why the job cannot trace it or open its descriptors, although it has the same uid (ptrace(2)).

When the job cannot be run, one line says so on stderr and in the file that HTCondor names for that; the starter then
gives the job back to the queue with that line in the job's event log. The codes are those of sysexits.h: 71 no
namespaces, 75 no network, and 126 or 127 as the shells use them.

What runs once per job is fast: `posix`, `_socket` and `_signal` are what `os`, `socket` and `signal` wrap, and save
half of the time that the interpreter takes to start.
"""

from __future__ import annotations

import _socket
import posix
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
LONGEST_ANSWER_BYTES = 1 << 20

#: The job's flight recorder, in its scratch folder.
FLIGHTS_FILE = "vpn-flight-recorder.json"

EX_USAGE = 64
EX_OSERR = 71
EX_TEMPFAIL = 75

#: How many user and network namespaces a job may have at once (namespaces(7), `/proc/sys/user`). The pilot's jobs have
#: one account, whose own limit one of them could reach for all.
MOST_NAMESPACES = (("user", 256), ("net", 64))

#: Set by what HTCondor runs in our place where a glidein has a job wrapper of its own: the path of that one.
CHAIN = "_HTCONDOR_VPN_CHAIN"

#: By which the prepare hook's answer renames variables that would act on this program (confinement.py).
LATER = "_HTCONDOR_VPN_LATER_"

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

#: All that can be caught is passed on to the job, except what the kernel sends for a fault of this very process, what
#: Python ignores for its own sake, and news of the child.
FORWARDED = _signal.valid_signals() - {
    _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGXFSZ,
    _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS,
}  # fmt: skip


_ENCODING = sys.getfilesystemencoding(), "surrogateescape"  # as in `os`


def encoded(text: str) -> bytes:
    """As the kernel takes it: os.fsencode."""
    return text.encode(*_ENCODING)


def decoded(data: bytes) -> str:
    """What the kernel gave: os.fsdecode."""
    return data.decode(*_ENCODING)


#: The variables that we were started with, and that the job gets.
environ = {decoded(name): decoded(value) for name, value in posix.environ.items()}


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
        data = encoded(body)
        data = f"{verb} {len(data)}\n".encode() + data
        self.socket.settimeout(seconds)
        rights = []
        if descriptor is not None:
            packed = descriptor.to_bytes(4, sys.byteorder)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        try:
            sent = self.socket.sendmsg([data], rights)
            while sent < len(data):
                sent += self.socket.send(data[sent:])
        except BrokenPipeError:
            pass  # a broker that refuses who asks does not wait for what; it has said why
        status, answered = self._answer(self.socket)
        answer = {}
        for line in decoded(answered).splitlines():
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
    """Calls unshare(2) or setns(2): as Python has it since 3.12, else through libc. Raises OSError.

    `_ctypes` is what `ctypes` wraps, and takes half of the time. But it does not tell why a call has failed: that is
    made again.
    """
    if hasattr(posix, name):
        getattr(posix, name)(*arguments)
        return
    import _ctypes

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # libc is in it
    if _ctypes.call_cdeclfunction(_ctypes.dlsym(program, name), arguments) == 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, posix.strerror(number))


def make_namespaces() -> None:
    """Makes the user and network namespace, with the same uid and gid inside as outside."""
    uid, gid = posix.getuid(), posix.getgid()
    try:
        kernel("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise CannotRun(EX_OSERR, f"the job's namespaces cannot be made: {error}") from error
    try:
        for name, most in MOST_NAMESPACES:
            with open(f"/proc/sys/user/max_{name}_namespaces", "w") as file:
                file.write(str(most))
    except OSError:
        return  # a container whose /proc/sys is read-only: the account's own limit holds


def gain_nothing() -> None:
    """Keeps programs with file capabilities, ping for one, from giving the job capabilities over its network.

    In a pilot it is so already (prctl(2), PR_SET_NO_NEW_PRIVS); set-uid programs have no effect in either.
    """
    with open("/proc/self/status") as file:
        if "NoNewPrivs:\t1" in file.read():
            return
    import ctypes

    if ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) != 0:
        raise CannotRun(EX_OSERR, "the job cannot be kept from gaining privileges")


def chirp_config() -> str:
    """What the starter wrote for condor_chirp, on one line, or an empty text."""
    try:
        with open(environ.get("_CONDOR_CHIRP_CONFIG", "")) as file:
            return " ".join(file.read(4096).split())
    except OSError:
        return ""  # the job cannot chirp then, with or without its own network


def requests_of_job() -> str:
    """The lines of the job ad by which it may ask for something, and its name.

    Raises `CannotRun` when the ad cannot be read.
    """
    path = environ.get("_CONDOR_JOB_AD")
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return decoded(b"".join(line for line in file if line.lower().startswith((b"vpn", b"globaljobid"))))
    except OSError as error:
        raise CannotRun(EX_TEMPFAIL, f"the job ad cannot be read: {error}") from error


def chained(answer: dict[str, str]) -> list[str]:
    """The site's own job wrapper, if there is one: the one that the pilot's settings name, or else a glidein's.

    The other way round a job could have the first one left out, by a variable of its own.
    """
    of_glidein = environ.pop(CHAIN, None)
    return list(filter(None, [answer.get("chain") or of_glidein]))


def job_environment() -> None:
    """Gives the job the variables that were kept from acting on this program."""
    for name in [name for name in environ if name.startswith(LATER)]:
        environ[name[len(LATER) :]] = environ.pop(name)


class Job:
    """The job as a child process."""

    def __init__(self, command: list[str]) -> None:
        """Starts `command`; raises `CannotRun` when it cannot be executed."""
        self.wakeup, self._wakeup_end = posix.pipe()
        posix.set_blocking(self.wakeup, False)
        posix.set_blocking(self._wakeup_end, False)
        _signal.set_wakeup_fd(self._wakeup_end)
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        caught = [n for n in (*FORWARDED, _signal.SIGCHLD) if _signal.getsignal(n) != _signal.SIG_IGN]
        for number in caught:
            _signal.signal(number, _no_handler)
        try:
            # With the signals as the starter had them, before Python changed any.
            self.pid = posix.posix_spawnp(
                command[0],
                command,
                environ,
                setsigmask=before,
                setsigdef=(*caught, _signal.SIGPIPE, _signal.SIGXFSZ),
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            raise CannotRun(code, f"{command[0]} cannot be executed: {error.strerror}") from error
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)

    def signals(self) -> bytes:
        """The signals that have come since the last call."""
        try:
            return posix.read(self.wakeup, 4096)
        except BlockingIOError:
            return b""

    def status(self) -> int | None:
        """The wait status, None while the job runs."""
        pid, status = posix.waitpid(self.pid, posix.WNOHANG)
        return status if pid else None


def _no_handler(number: int, frame: object) -> None:
    """The wakeup descriptor tells the loop in `run`."""


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


def deliver(job: Job, before: int) -> None:
    """Waits for what the job sent last: its connections end with its network, which goes when this process does.

    Not longer than `DELIVERY_SECONDS`, nor when a signal says that there is no time. `before` is how many sockets the
    job's network had without the job.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while tcp_sockets() > before and unsent() and time.monotonic() < deadline:
        if job.signals().strip(bytes([_signal.SIGCHLD])):
            return
        time.sleep(DELIVERY_POLL_SECONDS)  # nothing tells when a connection without a process has delivered


def tcp_sockets() -> int:
    """How many TCP sockets the network namespace has, those that listen and those that no process has included.

    The kernel counts them (`/proc/net/sockstat`), while for their states it goes through all of the machine's: 10 ms.
    """
    count = 0
    for name in ("sockstat", "sockstat6"):
        try:
            with open(f"/proc/self/net/{name}") as file:
                count += sum(int(words[2]) for words in map(str.split, file) if words[0] in ("TCP:", "TCP6:"))
        except FileNotFoundError:
            continue  # a kernel without IPv6
    return count


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


def leave(status: int) -> None:
    """Ends as the job did: with its exit code, or by its signal (and without a core file of our own)."""
    if posix.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        number = posix.WTERMSIG(status)
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
        posix.kill(posix.getpid(), number)
    posix._exit(posix.WEXITSTATUS(status))


def complain(reason: str) -> None:
    """Says something on the job's stderr."""
    posix.write(2, encoded(f"htcondor-vpn: {reason}\n"))


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
            with open(error_file, "w") as file:
                file.write(error.reason + "\n")
        posix._exit(error.code)


if __name__ == "__main__":
    main(sys.argv)
