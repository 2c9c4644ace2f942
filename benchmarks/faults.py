"""What may happen to a tunnel on the simulated site, each to be had by name, and mended again when it returns."""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from contextlib import suppress

from benchmarks.processes import family, tree
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.site import SITE_LINK, Site

#: Longer than anyone may be silent.
_STOPPED_SECONDS = 15.0

#: Longer than a probe needs to notice and a smaller size to be found.
_SMALL_SECONDS = 15.0
_SMALL_MTU = 1280

#: What the node gets instead of its own, and back.
OTHER_ADDRESS = plan.NODE.v4 + 7


class Faults:
    """The faults of a site with one gateway and the pilot `pilot`; `dice` choose whom they meet."""

    def __init__(self, site: Site, gateway: SiteGateway, pilot: int, dice: random.Random) -> None:
        self._site, self._gateway, self._pilot, self._dice = site, gateway, pilot, dice
        self._moved = False

    def all(self) -> dict[str, Callable[[], None]]:
        return {
            "kill -9 of engine, broker or a worker": self._kill_a_part,
            "engine, broker or a worker stopped for 15 s (SIGSTOP)": self._stop_a_part,
            "kill -9 of one of the gateway's processes": self._kill_a_gateways_process,
            "one of the gateway's processes stopped for 15 s (SIGSTOP)": self._stop_a_gateways_process,
            "gateway killed and started": self._restart_the_gateway,
            "gateway stopped for 8 s (SIGSTOP)": self._freeze_the_gateway,
            "link silent for 3 s": lambda: self._cut(self._site.link.blackhole, 3),
            "link down for 2 s": lambda: self._cut(self._site.link.down, 2),
            "link down for 20 s": lambda: self._cut(self._site.link.down, 20),
            "another address of the node": self._move_the_node,
            "smaller packets only, and it is told": lambda: self._shrink(told=True),
            "smaller packets only, and nobody is told": lambda: self._shrink(told=False),
        }

    def _kill_a_part(self) -> None:
        if parts := family(self._pilot)[1:]:
            _signal(self._dice.choice(parts), signal.SIGKILL)

    def _stop_a_part(self) -> None:
        self._stop_one_of(family(self._pilot)[1:])

    def _stop_a_gateways_process(self) -> None:
        assert self._gateway.process is not None
        self._stop_one_of(tree(self._gateway.process.pid))

    def _stop_one_of(self, processes: list[int]) -> None:
        if processes:
            victim = self._dice.choice(processes)
            _signal(victim, signal.SIGSTOP)
            _sleep(_STOPPED_SECONDS)
            _signal(victim, signal.SIGCONT)  # if it has not been killed by those who wait for it

    def _kill_a_gateways_process(self) -> None:
        assert self._gateway.process is not None
        _signal(self._dice.choice(tree(self._gateway.process.pid)), signal.SIGKILL)
        _sleep(1)  # should it end with that one
        if self._gateway.process.poll() is not None:
            self._restart_the_gateway()

    def _restart_the_gateway(self) -> None:
        self._gateway.stop()
        self._gateway.start()

    def _freeze_the_gateway(self) -> None:
        assert self._gateway.process is not None
        processes = tree(self._gateway.process.pid)
        for number, seconds in ((signal.SIGSTOP, 8), (signal.SIGCONT, 0)):
            for pid in processes:
                _signal(pid, number)
            _sleep(seconds)

    def _cut(self, how: Callable[[], None], seconds: float) -> None:
        how()
        _sleep(seconds)
        self._site.link.up()

    def _move_the_node(self) -> None:
        addresses = [OTHER_ADDRESS, plan.NODE.v4]
        old, new = addresses if self._moved else reversed(addresses)
        self._moved = not self._moved
        ip = [find_program("ip", "iproute2"), "address"]
        for action, address in (("delete", old), ("add", new)):
            at = [action, f"{address}/{plan.V4_LENGTH}", "dev", SITE_LINK]
            self._site.node.run([*ip, *at], as_root=True, check=True)
        route = [ip[0], "route", "replace", "default", "via", str(plan.DMZ_INSIDE.v4)]  # it has gone with the address
        self._site.node.run(route, as_root=True, check=True)

    def _shrink(self, told: bool) -> None:
        before = self._site.link.current
        self._site.link.shape(*before[:3], mtu=_SMALL_MTU, mtu_told=told)
        _sleep(_SMALL_SECONDS)
        self._site.link.shape(*before)
        for host in (self._site.node, self._site.dmz):
            for version in ("-4", "-6"):
                flush = [find_program("ip", "iproute2"), version, "route", "flush", "cache"]
                host.run(flush, as_root=True, check=True)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)  # the time that a fault lasts is the experiment
