"""A pilot that does on the node, inside its tunnel, what a test tells it line by line."""

import json
import os
import select
import subprocess
import time
from pathlib import Path

from htcondor_vpn.testbed import leftovers
from htcondor_vpn.testbed.leftovers import descendants
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import url

#: A gateway that falls silent is noticed within 5.3 s, and a machine that stalls for a few is not taken for one.
QUICK = ("PROBE_INTERVAL=0.3", "PROBE_TIMEOUT=5", "UP_MBPS=1000", "DOWN_MBPS=1000")
#: Who ends is noticed at once; a busy machine does not look like a gateway that is lost.
PATIENT = ("PROBE_INTERVAL=0.3", "PROBE_TIMEOUT=20", "UP_MBPS=1000", "DOWN_MBPS=1000")


class ShellPilot:
    """A running `htcondor-vpn run` whose COMMAND executes the lines that it is told, in a shell.

    `program` is Python in place of our own that prepares and then runs it.
    """

    def __init__(self, site, gateway, folder, *options, knobs=QUICK, env=None, program=None):
        self.site, self.run_dir, self.log = site, folder / "run", folder / "pilot.log"
        self._before = set(site.processes())
        self.log.touch()
        sets = [word for knob in knobs for word in ("--set", f"HTCONDOR_VPN_{knob}")]
        argv = gateway.run_argv(["sh", "-s"], "--run-dir", str(self.run_dir), *sets, *options)
        if program is not None:
            argv[1:3] = ["-c", program]
        self.process = site.node.start(argv, log=self.log, stdin=subprocess.PIPE, env=env)
        self.count = 0
        assert self.ask("echo hello") == "hello"

    def ask(self, line, timeout_seconds=60):
        """Has COMMAND execute a line of shell, and returns what it printed."""
        self.tell(f"echo; echo begin{self.count + 1}; {line}\necho; echo end{self.count + 1}")
        self.count += 1
        pattern = rf"^begin{self.count}\n((?:.|\n)*?)^end{self.count}$".encode()
        return wait_for_log(self.log, pattern, self.process, timeout_seconds=timeout_seconds)[1].decode().strip()

    def tell(self, line):
        """Has COMMAND execute a line of shell, whose output comes into `log`."""
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def wait_for_output(self, pattern, timeout_seconds=60):
        """Waits until COMMAND has printed a line that matches `pattern` (bytes)."""
        return wait_for_log(self.log, pattern, self.process, timeout_seconds=timeout_seconds)

    def state(self):
        return json.loads((self.run_dir / "state.json").read_text())

    def wait_for(self, state, timeout_seconds=60):
        """Waits until the tunnel is in `state`; for one that may not last see `wait_for_return`."""
        self._wait_for(lambda now: now["state"] == state, timeout_seconds)

    def wait_for_return(self, since, timeout_seconds=60):
        """Waits until the tunnel is up, and has been lost after it was as in `state()` with this `since`."""
        self._wait_for(lambda now: now["state"] == "up" and now["since"] > since, timeout_seconds)

    def _wait_for(self, wanted, timeout_seconds):
        deadline = time.monotonic() + timeout_seconds
        while not wanted(self.state()):
            assert time.monotonic() < deadline, (self.run_dir / "run.log").read_text()
            pause()

    def child(self, which, timeout_seconds=60):
        """The process id of the engine or the broker, as soon as there is one."""
        inner = network_of(self.command())
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = {network_of(pid) == inner: pid for pid in children(self.process.pid) if pid != self.command()}
            if (pid := found.get(which == "broker")) is not None:
                return pid
            assert time.monotonic() < deadline
            pause()

    def command(self):
        return int(self.ask("echo $$"))

    def parts(self):
        """Every process that this pilot consists of, but for what COMMAND has started; `run` itself is the first."""
        command = self.command()
        below = descendants(command)
        own = set(self.site.processes()) - self._before - set(below)
        return [self.process.pid, *sorted(own - {self.process.pid, command}), command]

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def kill(self):
        """Kills it, and returns when what it consists of has ended, as that does by itself."""
        self.process.stdin.close()
        leftovers.kill(self.process)


def pause(seconds=0.02):
    """Where there is no event to wait for; between two looks at a condition, before a deadline."""
    select.select([], [], [], seconds)


def wait_until(done, timeout_seconds=60):
    """Waits until `done` says something true, and returns it."""
    deadline = time.monotonic() + timeout_seconds
    while not (said := done()):
        assert time.monotonic() < deadline
        pause()
    return said


def children(pid):
    """The children of all of a process' threads; none if it has ended."""
    try:
        texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(word) for text in texts for word in text.split()]


def network_of(pid):
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except FileNotFoundError:
        return None  # it has just ended


def fetch(count=1000, seconds=20):
    """A line of shell that fetches so many bytes and says how many came."""
    return f"curl -s -m {seconds} -o /dev/null -w '%{{size_download}}' {url(f'/bytes/{count}')}"


def upload(count):
    """A line of shell that sends so many bytes and says how many have arrived."""
    said = r"""sed 's/.*"bytes": \([0-9]*\),.*/\1/'"""
    return f"head -c {count} /dev/zero | curl -s -m 20 -T - {url('/upload')} | {said}"
