"""The process that judges job ads, apart from the broker.

Whoever submits a job writes its ad, and the ClassAd library that reads it is no match for every ad: one of a few
megabytes crashes it, a short one keeps it busy for seconds. So the broker, which holds capabilities, only hands the ads
over. They are judged in a process without any privilege and with a limit on time and memory; a second one, which never
sees an ad, starts it anew and tells which signal it died of.

    broker ── {"id", "job", "machine"}, a file with the two ads ──▶ judge
           ◀── {"id", "record"} or {"id", "code", "message"} ──────┘
           ◀── {"died": signal} ── its keeper
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.file_policy import FilePolicy
from htcondor_vpn.jobnet.policy.records import record_of
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import fork_child
from htcondor_vpn.linux.namespaces import give_up_capabilities

log = logging.getLogger(__name__)

#: Processor time for one ad, and memory for all of it; an honest ad takes milliseconds.
CPU_SECONDS = 0.5
MEMORY_BYTES = 2 << 30

#: How long the broker waits for an answer, on a node that is busy with other things.
ANSWER_SECONDS = 8.0

#: By which others may have killed the judge, the ad being innocent.
_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
_MOST_TRIES = 3
_NOBODY = 65534


class Judge:
    """A policy file's policy (`policy.Policy`), in a process of its own."""

    #: A job's files may have taken the place of the ad that its wrapper reads.
    trusts_sandbox = False

    def __init__(self, policy: FilePolicy) -> None:
        self._policy = policy
        self._number = 0
        self._waiting: asyncio.Future[dict[str, Any]] | None = None

    def open(self) -> None:
        """Makes the process; raises OSError."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._child = fork_child("judge", lambda channel: _keep(channel, self._policy), mask)
        self._child.channel.sock.setblocking(False)

    def watch(self, on_death: Callable[[], None]) -> None:
        """Takes answers in the running loop; `on_death` is called when nobody judges any more."""
        self._lock = asyncio.Lock()
        self._on_death = on_death
        asyncio.get_running_loop().add_reader(self._child.channel.fileno(), self._hear)

    def close(self) -> None:
        """Ends it."""
        asyncio.get_running_loop().remove_reader(self._child.channel.fileno())
        self._child.channel.finish()
        self._child.reap()

    async def decide(self, job_ad: str, machine_ad: str) -> Decision:
        """Has the ads judged; raises `Refusal`."""
        texts = [text.encode(errors="surrogateescape") for text in (job_ad, machine_ad)]
        async with self._lock:
            for _ in range(_MOST_TRIES):
                answer = await self._asked(*texts)
                died_of = answer.get("died")
                if died_of is None:
                    break
                log.warning("the judge of a job ad died of signal %d", died_of)
                if died_of not in _BY_OTHERS:
                    raise Refusal(SubCode.AD_TOO_COMPLEX, "the job ad is too large or too complex to be evaluated")
            else:
                raise Refusal(SubCode.NOT_DECIDED, "the job ad could not be judged: the judge was killed repeatedly")
        if "cause" in answer:  # fork_child's word for what went wrong before anything was judged
            raise Refusal(SubCode.NOT_DECIDED, answer["cause"])
        if "code" in answer:
            raise Refusal(SubCode(answer["code"]), answer["message"])
        return self.restored(answer["record"])

    def restored(self, record: dict[str, Any]) -> Decision:
        """The decision that `records.record_of` made a record of; raises LookupError if its rule is none of ours."""
        return self._policy.restored(record)

    async def _asked(self, job_ad: bytes, machine_ad: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._number += 1
        ads = os.memfd_create("ads")
        try:
            with open(ads, "wb", closefd=False) as file:
                file.write(job_ad + machine_ad)
            request = {"id": self._number, "job": len(job_ad), "machine": len(machine_ad)}
            self._child.channel.send(request, [ads])
            return await asyncio.wait_for(self._waiting, ANSWER_SECONDS)
        except asyncio.TimeoutError:
            raise Refusal(SubCode.NOT_DECIDED, f"the job ad was not judged within {ANSWER_SECONDS:g} s") from None
        except OSError as error:
            raise Refusal(SubCode.NOT_DECIDED, f"the job ad cannot be judged: {error.strerror}") from error
        finally:
            self._waiting = None
            os.close(ads)

    def _hear(self) -> None:
        try:
            received = self._child.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            asyncio.get_running_loop().remove_reader(self._child.channel.fileno())
            self._on_death()
            return
        answer, _ = received
        waiting = self._waiting
        if waiting is not None and not waiting.done() and answer.get("id", self._number) == self._number:
            waiting.set_result(answer)


def _keep(channel: Channel, policy: FilePolicy) -> None:
    """Keeps a judge running until the broker ends, which the judge notices."""
    _give_up_privileges()
    while True:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _judge(channel, policy)
                code = 0
            except Exception:
                log.exception("the judge failed")
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGABRT
        try:
            channel.send({"died": int(died_of)})
        except BrokenPipeError:
            return


def _give_up_privileges() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.getuid() == 0:
        with suppress(PermissionError):  # root of a user namespace only, where there may be nobody else
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    give_up_capabilities()


def _judge(channel: Channel, policy: FilePolicy) -> None:
    """Judges ads until the broker ends. What kills this process is told by its keeper."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while (received := channel.receive()) is not None:
        request, (ads,) = received
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = {"id": request["id"], **_verdict(policy, ads, request["job"], request["machine"])}
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.close(ads)
        channel.send(answer)


def _verdict(policy: FilePolicy, ads: int, job_bytes: int, machine_bytes: int) -> dict[str, Any]:
    size = job_bytes + machine_bytes
    text = b""
    if size:
        with mmap.mmap(ads, size, prot=mmap.PROT_READ) as mapped:
            text = mapped[:]
    job, machine = (part.decode(errors="surrogateescape") for part in (text[:job_bytes], text[job_bytes:]))
    try:
        return {"record": record_of(policy.granted(job, machine).decision)}
    except Refusal as refusal:
        return {"code": int(refusal.sub_code), "message": refusal.message}
