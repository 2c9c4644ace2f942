"""A pilot's inner namespaces with a real broker in them and a TCP peer instead of a tunnel, for the tests of jobnet."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from resends import Resends

from htcondor_vpn.addresses import JOB_LINK, PILOT_V4, PILOT_V6
from htcondor_vpn.jobnet import broker
from htcondor_vpn.jobnet.policy.policy import make_policy, read_policy
from htcondor_vpn.linux import ancestry, links, namespaces
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.pilot.launch import LIBEXEC
from htcondor_vpn.pilot.run_folder import RunFolder
from htcondor_vpn.settings import Settings

HERE = Path(__file__).parent
TRAFFIC_PORT = 7000
ORDINARY_UID = 1000
TIMEOUT_SECONDS = 100.0


class Pilot:
    """Inner namespaces, broker, run folder. Use it in a `with`; `run_job` stands in for a starter.

    `resends` is what was sent again to jobs.
    """

    def __init__(self, folder: Path, families: tuple[str, ...] = ("ipv4", "ipv6"), **knobs: str) -> None:
        self.run_dir = folder / "run"
        self.folder = folder
        self.families = families
        self.settings = Settings.load(overrides={f"HTCONDOR_VPN_{name.upper()}": text for name, text in knobs.items()})
        self.jobs: list[int] = []
        self._namespaces: list[int] = []
        self._count = 0
        self._rules = read_policy(self.settings)
        self._memory = os.memfd_create("decisions")

    def __enter__(self) -> Pilot:
        RunFolder(self.run_dir).fill(LIBEXEC)
        self.tell_state("up")
        self._holder, self._hold = self._fork_holder()
        self.start_broker()
        peer = [sys.executable, str(HERE / "traffic_peer.py"), str(PILOT_V4), str(PILOT_V6), str(TRAFFIC_PORT)]
        self._peer = self.popen(peer, stdout=subprocess.PIPE)
        assert self._peer.stdout is not None
        assert self._peer.stdout.readline()
        self.resends = Resends(self._holder)
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()  # the supervisor's death: the broker kills everything inside
        self._reap(self.broker_pid)
        os.close(self._hold)
        self._reap(self._holder)
        self._peer.wait(60)
        assert self._peer.stdout is not None
        self._peer.stdout.close()
        self.resends.close()
        for descriptor in (*self._namespaces, self._memory):
            os.close(descriptor)

    def _reap(self, pid: int) -> None:
        if pid:
            os.waitpid(pid, 0)

    def tell_state(self, state: str) -> None:
        (self.run_dir / "state.json").write_text(json.dumps({"version": 1, "state": state}))

    def _fork_holder(self) -> tuple[int, int]:
        """Forks a process that makes the inner namespaces and ends when it is no longer held."""
        ready, tell_ready = os.pipe()
        held, hold = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(hold)
                if os.getuid() == 0:  # the root of a sandbox: a pilot is an ordinary user
                    namespaces.unshare(namespaces.CLONE_NEWUSER)
                    namespaces.map_own_ids(0, 0, inside_uid=ORDINARY_UID, inside_gid=ORDINARY_UID)
                namespaces.new_user_namespace(namespaces.CLONE_NEWNET | namespaces.CLONE_NEWNS)
                with Netlink() as netlink:
                    lo = links.LOOPBACK_INDEX
                    netlink.do([links.set_up(lo), links.add_address(lo, PILOT_V4, 32)])
                    netlink.do([links.add_address(lo, PILOT_V6, 128)])
                os.write(tell_ready, b"1")
                os.read(held, 1)
            finally:
                os._exit(0)
        os.close(tell_ready)
        os.close(held)
        assert os.read(ready, 1), "the inner namespaces could not be made"
        os.close(ready)
        for kind in ("user", "mnt", "net"):
            self._namespaces.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        return pid, hold

    @property
    def inner(self) -> ancestry.Identity:
        return ancestry.identity(self._namespaces[0])

    def enter(self) -> None:
        """Moves the calling (forked) process inside."""
        for descriptor in self._namespaces:
            namespaces.setns(descriptor)

    def start_broker(self) -> None:
        """Starts a broker as the supervisor does, and waits until it is ready."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60)
        self.broker_pid = os.fork()
        if self.broker_pid == 0:
            code = 1
            try:
                self.control.close()
                os.close(self._hold)
                log = os.open(self.run_dir / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 2)
                _log_to_stderr()
                self.enter()
                policy = make_policy(self._rules, self.settings)
                broker.serve(theirs, self.settings, self.run_dir, policy, self._memory)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        self.control.send(json.dumps({"families": self.families}).encode())
        assert json.loads(self.control.recv(4096)) == {"ready": True}, self.log()

    def kill_broker(self) -> None:
        os.kill(self.broker_pid, signal.SIGKILL)
        os.waitpid(self.broker_pid, 0)
        self.control.close()
        self.broker_pid = 0

    def log(self) -> str:
        return (self.run_dir / "run.log").read_text()

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a program inside, as HTCondor's processes run there: same uid, no capability."""
        return subprocess.Popen(argv, preexec_fn=self.enter, **options)

    def output(self, *argv: str) -> str:
        """Runs a program inside with the capabilities of the namespace's owner, and returns what it prints."""

        def enter() -> None:
            self.enter()
            namespaces.capabilities_to_programs()

        return subprocess.run(argv, preexec_fn=enter, capture_output=True, text=True, check=True, timeout=60).stdout

    def scratch(self, ad: str = "") -> Path:
        """Makes a job's scratch folder with `ad` (lines) in its job ad."""
        self._count += 1
        scratch = self.folder / f"dir_{self._count}"
        scratch.mkdir()
        (scratch / ".job.ad").write_text(f'MyType = "Job"\nRequestCpus = 1\n{ad}\n')
        return scratch

    def start_job(self, *command: str, ad: str = "", scratch: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts a stand-in for a starter, which runs `command` as a job."""
        scratch = scratch or self.scratch(ad)
        argv = [sys.executable, str(HERE / "fake_starter.py"), str(self.run_dir / "libexec"), str(scratch), *command]
        return self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run_job(self, *command: str, ad: str = "", scratch: Path | None = None) -> dict[str, Any]:
        """Runs a job to its end: `status`, `out`, `err`, `chirped`, `took_ms`."""
        return finished(self.start_job(*command, ad=ad, scratch=scratch))

    def run_hook(self, name: str, ad: str = "") -> dict[str, Any]:
        """Runs a hook."""
        return finished(self.start_job("--hook", name, ad=ad))

    def links(self) -> set[str]:
        """The names of the jobs' links that exist."""
        lines = self.output("/usr/sbin/ip", "-o", "link").splitlines()
        names = {line.split(": ")[1].split("@")[0] for line in lines}
        return {name for name in names if name.startswith(JOB_LINK)}


def finished(starter: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Waits for a stand-in for a starter and returns what it tells."""
    out, err = starter.communicate(timeout=TIMEOUT_SECONDS)
    assert starter.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


def until(condition: Any, seconds: float = 60.0) -> bool:
    """Waits until `condition()` holds; the kernel tells nobody when a namespace has gone."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.02)
    return True


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.DEBUG, stream=open(2, "w", closefd=False), force=True)  # noqa: SIM115
