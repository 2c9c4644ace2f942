"""One HTCondor instance: its folder, configuration and environment, its tools, and the life of its condor_master."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from htcondor_vpn.shipped import CONDOR_CONFIG, shipped
from htcondor_vpn.testbed.host import Host

#: How long condor_master gets to end its daemons before it is killed. SIGQUIT is its fast shutdown.
STOP_SECONDS = 60.0

#: Where both the pool and its pilots expect identities and tokens to come from.
TRUST_DOMAIN = "testbed"

T = TypeVar("T")


def wait_until(what: str, deadline_seconds: float, probe: Callable[[], T | None], pause_seconds: float = 0.1) -> T:
    """Asks `probe` again and again until it returns something, and returns that.

    HTCondor tells nobody when an ad arrives or a job ends: its daemons have to be asked. Raises TimeoutError with
    `what` after `deadline_seconds`; an exception of `probe` goes through.
    """
    end = time.monotonic() + deadline_seconds
    while True:
        found = probe()
        if found is not None:
            return found
        if time.monotonic() >= end:
            raise TimeoutError(f"{what}: not within {deadline_seconds:g} s")
        time.sleep(pause_seconds)


class CondorFolder:
    """The folder of one HTCondor instance whose programs come from `prefix`; `folder` is made, readable by its owner.

    A file put into `config.d` before the start is read after everything else.
    """

    def __init__(self, prefix: Path, folder: Path) -> None:
        self.prefix, self.folder = prefix, folder
        for name in ("log", "run", "lock", "spool", "execute", "config.d"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("tokens.d", "passwords.d"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)

    def write_config(self, daemons: str, collector: str, own: str) -> None:
        """Writes `condor_config` for the daemons of the list `daemons`: what all instances share, then `own`.

        `collector` is HOST:PORT.
        """
        lines = (
            f"RELEASE_DIR = {self.prefix}/usr",
            f"LOCAL_DIR = {self.folder}",
            "BIN = $(RELEASE_DIR)/bin",
            "SBIN = $(RELEASE_DIR)/sbin",
            "LIB = $(RELEASE_DIR)/lib/condor",
            "LIBEXEC = $(RELEASE_DIR)/libexec/condor",
            *(f"{name} = $(LOCAL_DIR)/{name.lower()}" for name in ("RUN", "LOG", "LOCK", "SPOOL", "EXECUTE")),
            f"DAEMON_LIST = MASTER {daemons}",
            f"CONDOR_HOST = {collector.rsplit(':', 1)[0]}",
            f"COLLECTOR_HOST = {collector}",
            "use security:recommended_v9_0",
            f"TRUST_DOMAIN = {TRUST_DOMAIN}",
            "SEC_TOKEN_DIRECTORY = $(LOCAL_DIR)/tokens.d",
            "SEC_TOKEN_SYSTEM_DIRECTORY = $(LOCAL_DIR)/tokens.d",
            "SEC_PASSWORD_DIRECTORY = $(LOCAL_DIR)/passwords.d",
            "SEC_TOKEN_POOL_SIGNING_KEY_FILE = $(LOCAL_DIR)/passwords.d/POOL",
            # No host here has a name that a DNS server knows.
            "NO_DNS = true",
            f"DEFAULT_DOMAIN_NAME = {TRUST_DOMAIN}",
            "USE_SHARED_PORT = true",
            # Nobody waits for the ends of long intervals here.
            "MASTER_BACKOFF_CEILING = 5",
            "MASTER_UPDATE_INTERVAL = 10",
            "LOCAL_CONFIG_DIR = $(LOCAL_DIR)/config.d",
            own,
        )
        (self.folder / "condor_config").write_text("\n".join(lines) + "\n")

    def add(self, *lines: str, name: str = "90-test.conf") -> None:
        """Writes a configuration file that is read after those of lesser names."""
        (self.folder / "config.d" / name).write_text("\n".join(lines) + "\n")

    def add_shipped(self, name: str) -> None:
        """Drops in a configuration file of the project, as an admin would."""
        (self.folder / "config.d" / name).write_bytes((shipped(CONDOR_CONFIG) / name).read_bytes())

    def write_secret(self, name: str, text: str) -> None:
        """Writes a file below the folder that only its owner may read, as HTCondor wants its keys and tokens."""
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)

    def command(self, name: str, *arguments: str, launcher: Sequence[str] = ()) -> list[str]:
        """Returns the command line of one of HTCondor's programs, with an environment that has nothing of the caller's.

        The words of `launcher` come before the program and get the same environment. Raises FileNotFoundError.
        """
        for part in ("bin", "sbin", "libexec/condor"):
            path = self.prefix / "usr" / part / name
            if path.exists():
                variables = (f"{name}={value}" for name, value in self.environment.items())
                return ["/usr/bin/env", "-i", *variables, *launcher, str(path), *arguments]
        raise FileNotFoundError(f"there is no {name} in {self.prefix}")

    @property
    def environment(self) -> dict[str, str]:
        """What this instance's programs have to find in their environment."""
        return {
            "HOME": str(self.folder),
            "TMPDIR": tempfile.gettempdir(),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{self.prefix}/usr/bin:{self.prefix}/usr/sbin:/usr/bin:/bin:/usr/sbin:/sbin",
            "CONDOR_CONFIG": str(self.folder / "condor_config"),
        }

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of every log that says something of an error, for a failure's message."""
        parts = []
        for path in sorted((self.folder / "log").glob("*Log*")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            told = [line for line in tail if "ERROR" in line or "fail" in line.lower() or "DENIED" in line]
            if told:
                parts.append(f"--- {path}\n" + "\n".join(told))
        return "\n".join(parts)


class Master:
    """A running condor_master with its daemons; it ends with `stop`, with the end of `with`, or with its site."""

    def __init__(self, host: Host, instance: CondorFolder, launcher: Sequence[str] = ()) -> None:
        """Starts it, behind the words of `launcher` if there are any (such as `htcondor-vpn run … --`)."""
        self._process = host.start(
            instance.command("condor_master", "-f", launcher=launcher), log=instance.folder / "log" / "master.out"
        )

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started: condor_master, or the launcher around it."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code if it has ended (negative: the signal), else None."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, deadline_seconds: float) -> int:
        """Waits for its end and returns its exit code; raises subprocess.TimeoutExpired."""
        return self._process.wait(deadline_seconds)

    def stop(self, within_seconds: float = STOP_SECONDS) -> int:
        """Ends the daemons the fast way, by force after `within_seconds`; returns the exit code. May be repeated."""
        self.signal(signal.SIGQUIT)
        try:
            return self._process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            family = [self.pid, *descendants(self.pid)]
            for pid in family:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # its parent's end has ended it
            return self._process.wait(STOP_SECONDS)


def descendants(pid: int) -> list[int]:
    """Returns the processes that `pid` and its children started and that are not orphans, parents first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        for child in children:
            found += [child, *descendants(child)]
    return found
