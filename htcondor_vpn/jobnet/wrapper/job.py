"""The job as a child process: its start, the signals for it, and its end as our own."""

from __future__ import annotations

import posix

from htcondor_vpn.jobnet.wrapper.failure import CannotRun
from htcondor_vpn.jobnet.wrapper.surroundings import environ

TYPE_CHECKING = False
if TYPE_CHECKING:  # which knows the module by this name
    import signal as _signal
else:
    import _signal

#: All that can be caught is passed on to the job, except what the kernel sends for a fault of this very process, what
#: Python ignores for its own sake, and news of the child.
FORWARDED = _signal.valid_signals() - {
    _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGXFSZ,
    _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS,
}  # fmt: skip


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
