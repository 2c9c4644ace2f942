"""Many jobs through one pilot's broker, one after another and several at once: nothing grows, and nothing is left."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import anonymous_bytes, command_of, family, pss_bytes, tree
from htcondor_vpn.addresses import JOB_LINK, SHAPER_NAMES
from htcondor_vpn.jobnet.counting.rules import TABLE
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.tunnel.carriers import ready

#: By then what is bounded is full: buffers, the decisions that are kept until they are swept, pages of the ledger.
_WARM_UP_JOBS = 500
_INTERVALS = 10
#: What each of the pilot's processes may have grown by, MB, from the warm-up to the last job.
_MOST_GROWN_MB = 2.0
#: Connections to the gateway that stand by are as many as there is demand.
_STANDING_BY = ready.MOST - ready.FEWEST
_SETTLE_SECONDS = 30.0
_LINE_SECONDS = 1800.0


def soak(report: Report, jobs: int, seed: int) -> None:
    with Site() as site, WorldServices(site), SiteGateway(site.dmz, site.folder / "gateway") as gateway:
        before = set(site.processes())
        inside = ["sh", "-c", '"$0" "$@"; exit', sys.executable, "-m", "benchmarks.inside_jobs_soak"]
        inside += [str(plan.WORLD["http"].v4), str(seed)]
        knobs = ["--set", "HTCONDOR_VPN_JOBS_UP_MBPS=1000", "--set", "HTCONDOR_VPN_JOBS_DOWN_MBPS=1000"]
        log = site.folder / "soak.log"
        argv = gateway.run_argv(inside, *knobs)
        run = site.node.start(argv, log=log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pilot = _Pilot(run)
        pilot.run(_WARM_UP_JOBS)
        first, left = pilot.held(), pilot.left()
        _say(report, _WARM_UP_JOBS, first)
        for number in range(_INTERVALS):
            told = pilot.run(jobs * (number + 1) // _INTERVALS - jobs * number // _INTERVALS)
            last = pilot.held()
            _say(report, _WARM_UP_JOBS + jobs * (number + 1) // _INTERVALS, last)
        count = _WARM_UP_JOBS + jobs
        report.add("jobs that were killed: job, wrapper or starter", told["killed"] > 0, told["killed"], "", "some")
        report.add("jobs that ended in another way than they should", not told["failed"], told["failed"], "", "0")
        # A job whose starter was killed may tell them twice: when it ends, and when its wrapper is killed meanwhile.
        ended = count - told["killed"]
        report.add("times that a job's bytes were told", told["told"] >= ended, told["told"], "", f">= {ended}")
        for name in first:
            pss_mb = (last[name].pss_bytes - first[name].pss_bytes) / 1e6
            report.add(f"growth of {name} (PSS)", True, pss_mb, "MB", MEASURED)
            grown_mb = (last[name].anonymous_bytes - first[name].anonymous_bytes) / 1e6
            wanted = f"< {_MOST_GROWN_MB:g} MB"
            report.add(f"growth of {name}, without files", grown_mb < _MOST_GROWN_MB, grown_mb, "MB", wanted)
            grown, most = last[name].descriptors - first[name].descriptors, _STANDING_BY if name == "engine" else 0
            report.add(f"growth of {name}, descriptors", grown <= most, grown, "", f"<= {most}")
        for what, there in pilot.left().items():
            report.add(f"left behind: {what}", there == left[what], there - left[what], "", "0")
        pilot.end()
        processes = set(site.processes()) - before
        report.add("processes left behind by the pilot", not processes, len(processes), "", "0")


class _Held:
    """What some processes hold together."""

    def __init__(self, pids: list[int]) -> None:
        self.pss_bytes = sum(map(pss_bytes, pids))
        self.anonymous_bytes = sum(map(anonymous_bytes, pids))
        self.descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


class _Pilot:
    """The pilot of `run`, in which `inside_jobs_soak` waits for how many jobs it shall run."""

    def __init__(self, run: subprocess.Popen[bytes]) -> None:
        self._run = run
        self._broker = int(self._line())
        self._command = command_of(run.pid)

    def _line(self) -> str:
        assert self._run.stdout is not None
        if not select.select([self._run.stdout], [], [], _LINE_SECONDS)[0]:
            raise TimeoutError(f"the jobs did not end within {_LINE_SECONDS:g} s")
        line = self._run.stdout.readline().decode()
        if not line:
            raise RuntimeError("the pilot ended")
        return line

    def run(self, jobs: int) -> dict[str, int]:
        """Runs so many jobs; returns what is known of all so far, when the kernel has let go of the last network."""
        assert self._run.stdin is not None
        self._run.stdin.write(f"{jobs}\n".encode())
        self._run.stdin.flush()
        told: dict[str, int] = json.loads(self._line())
        deadline = time.monotonic() + _SETTLE_SECONDS
        while any(self._of_jobs().values()) and time.monotonic() < deadline:
            select.select([], [], [], 0.1)  # the kernel tells nobody when a namespace has gone
        return told

    def held(self) -> Mapping[str, _Held]:
        """By the name of the process: what it holds now."""
        run, broker = self._run.pid, self._broker
        others = [pid for pid in family(run) if pid not in (run, broker)]
        return {"run": _Held([run]), "broker": _Held([broker]), "engine": _Held(others)}

    def _of_jobs(self) -> dict[str, int]:
        """What only jobs have."""
        links = [line.split(":")[0].strip() for line in Path(f"/proc/{self._command}/net/dev").read_text().splitlines()]
        listed = json.loads(self._inside("nft", "-j", "list", "table", "inet", TABLE))["nftables"]
        named: list[dict[str, Any]] = [each.get("set") or each.get("map") or {} for each in listed]
        networks = {os.readlink(f"/proc/{pid}/ns/net") for pid in tree(self._run.pid)}
        folder = f"/proc/{self._broker}/fd"
        held = {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
        return {
            "veths": sum(link.startswith(JOB_LINK) for link in links),
            "elements of rules": sum(len(each.get("elem", ())) for each in named),
            "namespaces that the broker holds": len({each for each in held if each.startswith("net:")} - networks),
        }

    def left(self) -> dict[str, int]:
        """What is there while no job runs."""
        listed = json.loads(self._inside("nft", "-j", "list", "table", "inet", TABLE))["nftables"]
        kinds = [(what, name) for name in SHAPER_NAMES for what in ("class", "filter")]
        shaped = [self._inside("tc", what, "show", "dev", name) for what, name in kinds]
        return {
            **self._of_jobs(),
            "rules": sum("rule" in each for each in listed),
            "queues": len(self._inside("tc", "qdisc", "show").splitlines()),
            "classes and their filters": sum(len(each.splitlines()) for each in shaped),
            "processes": len(tree(self._run.pid)),
            "network namespaces": len({os.readlink(f"/proc/{pid}/ns/net") for pid in _processes()}),
        }

    def _inside(self, program: str, *words: str) -> str:
        enter = [find_program("nsenter", "util-linux"), f"--net=/proc/{self._command}/ns/net"]
        return run_program([*enter, find_program(program), *words])

    def end(self) -> None:
        self._run.terminate()
        self._run.wait(20)
        for stream in (self._run.stdin, self._run.stdout):
            assert stream is not None
            stream.close()


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _say(report: Report, jobs: int, held: Mapping[str, _Held]) -> None:
    text = ", ".join(
        f"{name} {each.pss_bytes / 1e6:.1f} ({each.anonymous_bytes / 1e6:.1f}) MB and {each.descriptors}"
        for name, each in held.items()
    )
    report.add(f"after {jobs} jobs, PSS (all without files) and descriptors", True, text, "", MEASURED)
