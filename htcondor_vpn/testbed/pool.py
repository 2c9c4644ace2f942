"""A pool's central manager and access point: collector, negotiator and schedd, and the questions one asks them.

They are asked with HTCondor's own tools, run on the host they belong to: the Python bindings would have to live inside
that host's network namespace, in a process of their own. The ads come back as ClassAds all the same.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import classad2

from htcondor_vpn.linux.programs import ProgramFailed
from htcondor_vpn.testbed.condor_folder import TRUST_DOMAIN, CondorFolder, Master, wait_until
from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.pilot_config import PilotConfig

PORT = 9618
START_SECONDS = 120.0

#: For what is to happen in a pool, however busy the machine is; without load most of it takes seconds.
WAIT_SECONDS = 180.0

#: Numbers of the job event log (HTCondor's manual, "Job Event Log Codes").
EXECUTING, TERMINATED, ABORTED, HELD = 1, 5, 9, 12


@dataclass(frozen=True)
class JobEvent:
    """One event of a job's log: its number, the process it is about, and its lines."""

    number: int
    process: int
    text: str


class CentralManager:
    """A pool at `address` on `host`, with the programs of `prefix` and its files under `folder`.

    Use it as a context manager: it runs inside. The host's ordinary user owns it; jobs of anyone else are refused. Its
    access point keeps our job attributes' older names as well; `instance.add` before the start can change that.
    """

    def __init__(self, host: Host, prefix: Path, folder: Path, address: str) -> None:
        self.host = host
        self.instance = CondorFolder(prefix, folder)
        self.collector = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
        owner = host.run(["id", "--user", "--name"], check=True).stdout.strip()
        self.instance.write_secret("passwords.d/POOL", base64.b64encode(os.urandom(64)).decode())
        self.instance.write_config(
            "COLLECTOR NEGOTIATOR SCHEDD", self.collector, _OWN.format(address=address, owner=owner, port=PORT)
        )
        self.instance.add_shipped("50-htcondor-vpn-access-point.conf")
        self._master: Master | None = None

    def __enter__(self) -> CentralManager:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemons; returns when jobs can be submitted. Raises TimeoutError with what the logs say."""
        self._master = Master(self.host, self.instance)
        try:
            wait_until("the pool's schedd is in its collector", START_SECONDS, self._schedd)
        except (TimeoutError, RuntimeError) as error:
            self.stop()
            raise type(error)(f"{error}\n{self.instance.log_tail()}") from error

    def _schedd(self) -> bool | None:
        if self._master is None or self._master.poll() is not None:
            raise RuntimeError(f"condor_master ended; see {self.instance.folder}/log")
        try:
            return "pool@" in self.tool("condor_status", "-schedd", "-af", "Name") or None
        except ProgramFailed:
            return None  # no collector yet

    def stop(self) -> None:
        """Ends the daemons. May be repeated."""
        if self._master is not None:
            self._master.stop()

    def tool(self, name: str, *arguments: str, stdin: str = "", timeout_seconds: float = 90) -> str:
        """Runs one of HTCondor's tools as the pool's owner and returns what it prints; raises `ProgramFailed`."""
        argv = self.instance.command(name, *arguments)
        return self.host.run(argv, stdin=stdin, timeout_seconds=timeout_seconds, check=True).stdout

    def ads(self, name: str, *arguments: str, timeout_seconds: float = 90) -> list[Any]:
        """Runs a tool that prints ads with `-long` and returns them as `classad2.ClassAd`s."""
        return list(classad2.parseAds(self.tool(name, *arguments, "-long", timeout_seconds=timeout_seconds)))

    # Pilots

    def pilot_token(self) -> str:
        """Makes a token with which a pilot may join the pool, and nothing else."""
        rights = ("ADVERTISE_STARTD", "ADVERTISE_MASTER", "READ", "WRITE", "DAEMON")
        arguments = [word for right in rights for word in ("-authz", right)]
        return self.tool("condor_token_create", "-identity", f"pilot@{TRUST_DOMAIN}", *arguments).strip()

    def pilot(self, folder: Path, *, name: str, cpus: int = 8, prefix: Path | None = None) -> PilotConfig:
        """Prepares the folder of a pilot for this pool, with the same HTCondor unless `prefix` is another one."""
        return PilotConfig(
            prefix or self.instance.prefix, folder, name=name, collector=self.collector, token=self.pilot_token(),
            cpus=cpus,
        )  # fmt: skip

    def slots(self, constraint: str = "true", projection: Sequence[str] = ()) -> list[Any]:
        """Returns the slots' ads that satisfy `constraint`; of their attributes `projection` alone, if given."""
        attributes = ["-attributes", ",".join(projection)] if projection else []
        return self.ads("condor_status", "-constraint", constraint, *attributes)

    def wait_for_startd(self, name: str, deadline_seconds: float = WAIT_SECONDS, constraint: str = "true") -> Any:
        """Waits until the partitionable slot of pilot `name` is in the collector and satisfies `constraint`.

        Returns its ad; raises TimeoutError.
        """

        def slot() -> Any | None:
            found = self.slots(f'PartitionableSlot && Name == "slot1@{name}@{TRUST_DOMAIN}" && ({constraint})')
            return found[0] if found else None

        return wait_until(f"a slot of pilot {name} with {constraint} in the collector", deadline_seconds, slot)

    # Jobs

    def job_folder(self, number: int) -> Path:
        """The folder of one submission (`submit` counts them from 1): its files, `job.log`, output and error."""
        return self.instance.folder / "jobs" / str(number)

    def submit(self, description: Mapping[str, str], files: Mapping[str, str | bytes] | None = None) -> int:
        """Submits a job and returns its cluster number.

        `description` holds submit commands (`arguments`, `+VpnBandwidthMbps`, …; `queue` for how many, 1 by default).
        `files` are written into the job's folder first; the one called `executable` there becomes executable. Output
        goes to `out.$(Process)` and `err.$(Process)` and events to `job.log` unless the description says otherwise.
        Raises `ProgramFailed` with what condor_submit says.
        """
        jobs = self.instance.folder / "jobs"
        jobs.mkdir(exist_ok=True)
        folder = jobs / f"new-{len(list(jobs.iterdir()))}"
        folder.mkdir()
        executable = description.get("executable", "")
        for name, content in (files or {}).items():
            path = folder / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            path.chmod(0o755 if name == executable else 0o644)
        commands = {
            "universe": "vanilla",
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT",
            "request_cpus": "1",
            "request_memory": "64MB",
            "request_disk": "1MB",
            "output": "out.$(Process)",
            "error": "err.$(Process)",
            "log": "job.log",
            "notification": "never",
            **description,
        }
        commands["initialdir"] = str(folder)
        if (folder / executable).is_file():  # condor_submit looks for it in its own folder, not in the initial one
            commands["executable"] = str(folder / executable)
        count = commands.pop("queue", "1")
        text = "".join(f"{name} = {value}\n" for name, value in commands.items())
        said = self.tool("condor_submit", "-terse", "-", stdin=f"{text}queue {count}\n")
        match = re.match(r"(\d+)\.\d+", said)
        if not match:
            raise RuntimeError(f"condor_submit names no cluster: {said!r}")
        (jobs / match[1]).symlink_to(folder.name)
        return int(match[1])

    def file(self, cluster: int, name: str) -> bytes:
        """Reads a file of a job's folder, such as `out.0`."""
        return (self.job_folder(cluster) / name).read_bytes()

    def queue(self, cluster: int, process: int = 0) -> Any | None:
        """Returns the ad of a job that is still in the queue, else None."""
        found = self.ads("condor_q", f"{cluster}.{process}")
        return found[0] if found else None

    def wait_for_history(self, cluster: int, deadline_seconds: float = WAIT_SECONDS, process: int = 0) -> Any:
        """Waits until a job has left the queue and returns its ad from the history.

        Raises TimeoutError, which says how the job fares: its last event and, if it is held, why.
        """

        def ad() -> Any | None:
            found = self.ads("condor_history", f"{cluster}.{process}", "-limit", "1")
            return found[0] if found else None

        try:
            return wait_until(f"job {cluster}.{process} in the history", deadline_seconds, ad)
        except TimeoutError as error:
            events = self.events(cluster)
            last = events[-1].text if events else "none"
            raise TimeoutError(f"{error}; its last event: {last}\n{self.instance.log_tail()}") from None

    def wait_for_event(
        self, cluster: int, number: int, deadline_seconds: float = WAIT_SECONDS, process: int = 0
    ) -> JobEvent:
        """Waits for an event of a job (`EXECUTING`, `HELD`, … or any other number); raises TimeoutError."""

        def event() -> JobEvent | None:
            return next((e for e in self.events(cluster) if (e.number, e.process) == (number, process)), None)

        return wait_until(f"event {number} of job {cluster}.{process}", deadline_seconds, event, 0.05)

    def wait_for_hold(self, cluster: int, deadline_seconds: float = WAIT_SECONDS, process: int = 0) -> Any:
        """Waits until a job is held and returns its ad: `HoldReason`, `HoldReasonCode`, `HoldReasonSubCode`."""
        self.wait_for_event(cluster, HELD, deadline_seconds, process)
        return wait_until(
            f"job {cluster}.{process} is held in the queue",
            deadline_seconds,
            lambda: next(iter(self.ads("condor_q", f"{cluster}.{process}", "-constraint", "JobStatus == 5")), None),
        )

    def events(self, cluster: int) -> list[JobEvent]:
        """Returns the events in a submission's log so far, in their order."""
        try:
            text = (self.job_folder(cluster) / "job.log").read_text()
        except FileNotFoundError:
            return []
        found = re.findall(r"(?ms)^(\d{3}) \(\d+\.(\d+)\.\d+\) (.*?)\n\.\.\.$", text)
        return [JobEvent(int(number), int(process), words) for number, process, words in found]

    def ssh_to_job(self, cluster: int, command: str, deadline_seconds: float = WAIT_SECONDS) -> str:
        """Runs a shell command in a running job's surroundings (condor_ssh_to_job) and returns what it prints.

        The access point hears of the job's starter a little later than of its start, hence the retries. Raises
        `ProgramFailed`, and subprocess.TimeoutExpired after the deadline.
        """
        return self.tool("condor_ssh_to_job", "-auto-retry", str(cluster), command, timeout_seconds=deadline_seconds)

    def remove(self, cluster: int) -> None:
        """Removes a cluster's jobs from the queue (condor_rm), unless they leave it by themselves."""
        self._remove(str(cluster), [str(cluster)])

    def forget_jobs(self) -> None:
        """Removes every job from the queue, running or not, and the files of those that are over."""
        if self.ads("condor_q"):
            self._remove("-all", [])
            wait_until("the queue is empty", START_SECONDS, lambda: True if not self.ads("condor_q") else None)
        shutil.rmtree(self.instance.folder / "jobs", ignore_errors=True)

    def _remove(self, which: str, queried: Sequence[str]) -> None:
        try:
            self.tool("condor_rm", which)
        except ProgramFailed:
            if self.ads("condor_q", *queried):
                raise


_OWN = f"""\
NETWORK_INTERFACE = {{address}}
SHARED_PORT_PORT = {{port}}
UID_DOMAIN = {TRUST_DOMAIN}
SCHEDD_NAME = pool@
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = {{owner}}@{TRUST_DOMAIN}, pilot@{TRUST_DOMAIN}, condor@{TRUST_DOMAIN}, condor_pool@{TRUST_DOMAIN}
ALLOW_ADVERTISE_STARTD = pilot@{TRUST_DOMAIN}, {{owner}}@{TRUST_DOMAIN}
ALLOW_ADVERTISE_MASTER = pilot@{TRUST_DOMAIN}, {{owner}}@{TRUST_DOMAIN}
ALLOW_NEGOTIATOR = {{owner}}@{TRUST_DOMAIN}, condor@{TRUST_DOMAIN}
ALLOW_ADMINISTRATOR = {{owner}}@{TRUST_DOMAIN}
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_UPDATE_INTERVAL = 10
SCHEDD_INTERVAL = 5
SCHEDD_MIN_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 5
JOB_START_COUNT = 50
JOB_EPOCH_HISTORY = $(SPOOL)/epoch_history
"""
