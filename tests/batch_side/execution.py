"""What a batch system has on a node for each job (slurmstepd, pbs_mom): `execution.py SPEC`, with orders on its input.

SPEC is a JSON object: `kind` (slurm or pbs), `argv`, `stdin`, `folder`, `environment` and `output` of the batch shell,
`kill_wait_seconds`, and the fields of a `Request`. The orders: `signal NUMBER` (to the batch shell), `cancel`, `leave
SECONDS` (another time limit), `kill`. The shell's exit code is written beside the output. Standard library alone, as
the job's user.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


class Execution:
    """One job: its batch shell, its processes, and what is due when."""

    def __init__(self, spec: dict) -> None:
        self.spec = spec
        self.code: int | None = None
        #: By name, when what happens at what time (`_due`).
        self.due: dict[str, float] = {}
        self.shell = self._start()
        self._leave(spec["time_seconds"])

    def _start(self) -> int:
        reading, writing = os.pipe()
        os.write(writing, self.spec["stdin"].encode())
        os.close(writing)
        output = os.open(self.spec["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                for descriptor, number in ((reading, 0), (output, 1), (output, 2)):
                    os.dup2(descriptor, number)
                for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec would keep so
                    signal.signal(number, signal.SIG_DFL)
                os.chdir(self.spec["folder"])
                os.execve(self.spec["argv"][0], self.spec["argv"], self.spec["environment"])
            finally:
                os._exit(127)
        os.close(reading)
        os.close(output)
        return pid

    # Whom signals reach

    def _signal(self, number: int, pids: Iterator[int] | list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _told(self) -> list[int]:
        """Whom TERM is sent to."""
        return [self.shell] if self.spec["kind"] == "slurm" else list(session(self.shell))

    def _all(self) -> list[int]:
        """All that is the job's, as the batch system knows it."""
        return list(descendants(os.getpid()) if self.spec["kind"] == "slurm" else session(self.shell))

    # What happens

    def _leave(self, seconds: float) -> None:
        end = self.due["end"] = time.monotonic() + seconds
        if self.spec["warns_shell"] and "warned" not in self.spec:
            self.due["warning"] = end - self.spec["warning_seconds"]

    def _happens(self, name: str) -> None:
        del self.due[name]
        if name == "warning":
            self.spec["warned"] = True
            self._signal(self.spec["warning_signal"], [self.shell])
        elif name == "end":
            self._end()
        elif name == "kill":
            self._signal(signal.SIGKILL, self._all())

    def _end(self) -> None:
        self.due = {"kill": time.monotonic() + self.spec["kill_wait_seconds"]}
        self._signal(signal.SIGCONT, self._told())
        self._signal(signal.SIGTERM, self._told())

    def order(self, words: list[str]) -> None:
        if words[0] == "signal":
            self._signal(int(words[1]), [self.shell])
        elif words[0] == "leave":
            self._leave(float(words[1]))
        elif words[0] == "cancel":
            self._end()
        elif words[0] == "kill":
            self._signal(signal.SIGKILL, self._all())

    def reap(self) -> None:
        """Takes the ends of processes: of the shell, and of those that had nobody else left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.shell:
                    self.code = os.waitstatus_to_exitcode(status)

    def run(self, wake: int) -> None:
        """Returns when the shell has ended, and with it all that is known to be the job's."""
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(wake, select.POLLIN)
        while self.code is None:
            now = time.monotonic()
            for name in [name for name, due in self.due.items() if due <= now]:
                self._happens(name)
            timeout = min(self.due.values(), default=now + 3600) - now
            for descriptor, _ in poller.poll(max(0, timeout) * 1000):
                said = os.read(descriptor, 65536)
                if descriptor == 0:
                    for line in said.decode().splitlines():
                        self.order(line.split())
                    if not said:  # nobody orders any more
                        poller.unregister(0)
            self.reap()
        while pids := self._all():
            self._signal(signal.SIGKILL, pids)
            select.select([wake], [], [], 0.05)
            self.reap()
        self.reap()


def descendants(pid: int) -> Iterator[int]:
    """The living processes that `pid` is responsible for: a job's, if it is their subreaper, as in a cgroup."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def session(leader: int) -> Iterator[int]:
    """The processes of a session that have not ended."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, number = entry.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                yield int(entry.parent.name)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake, woken = os.pipe()
    for descriptor in (wake, woken):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    execution = Execution(spec)
    execution.run(wake)
    if spec["kind"] == "pbs":
        shutil.rmtree(spec["environment"]["TMPDIR"], ignore_errors=True)
    Path(spec["output"] + ".ended").write_text(f"{execution.code}\n")


if __name__ == "__main__":
    main()
