"""Ours: a pilot of `htcondor-vpn run` on the node, with any engine and whatever serves it in the DMZ."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from benchmarks.processes import command_of, tree
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.testbed.vpn_servers import Ocserv
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go
from htcondor_vpn.testbed.wireguard_server import WireguardServer

_STOP_SECONDS = 10.0

#: The rates are told, so that measuring them does not disturb the measurement.
_TOLD = ["--set", "HTCONDOR_VPN_UP_MBPS=1", "--set", "HTCONDOR_VPN_DOWN_MBPS=1"]


class PilotContender:
    """A pilot with `options` of `htcondor-vpn run`; commands run in its namespaces. Up inside.

    `command` is a process in them; `servers` are the process ids at the other end, if those are to count; `turn` as in
    `Contender`.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        options: Sequence[str],
        servers: Sequence[int] = (),
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.name, self.turn, self._site = name, turn, site
        self._options, self._servers = options, servers
        self._pilot: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PilotContender:
        log = self._site.folder / f"{self.name.replace(' ', '-')}.log"
        argv = vpn_command("run", *_TOLD, *self._options, "-v", "--", "sh", "-c", "echo ready; exec sleep infinity")
        log.touch()
        start_bytes = log.stat().st_size
        with self.turn():
            self._pilot = self._site.node.start(argv, log=log)
            wait_for_log(log, b"^ready$", self._pilot, start_bytes=start_bytes)
        self.command = command_of(self._pilot.pid)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pilot is not None
        self._pilot.terminate()
        self._pilot.wait(_STOP_SECONDS)

    def argv(self, command: Sequence[str]) -> list[str]:
        enter = [find_program("nsenter", "util-linux"), "--preserve-credentials", "-t", str(self.command)]
        return [*enter, "--user", "--net", "--mount", "--", *command]

    def processes(self) -> list[int]:
        assert self._pilot is not None
        return [*tree(self._pilot.pid, [self.command]), *(pid for server in self._servers for pid in tree(server))]


def stream(site: Site, gateway: SiteGateway, name: str = "stream", **knobs: object) -> PilotContender:
    """The engine of streams through a gateway that runs already, with these `knobs`."""
    assert gateway.process is not None
    told = ["--gateway", gateway.endpoints[0], "--pin-file", str(gateway.pin_file)]
    told += ["--token-file", str(gateway.token_file), *_sets(knobs)]
    return PilotContender(site, name, told, [gateway.process.pid])


@contextmanager
def wireguard(site: Site) -> Iterator[PilotContender]:
    """The engine wireguard, with a server of root's in the DMZ: wireguard-go at both ends."""
    with WireguardServer(site, site.folder / "wireguard", forwards=False) as server:
        assert server.process is not None
        knobs = {"ENGINE": "wireguard", "WIREGUARD_CONFIG_FILES": server.config, "WIREGUARD_GO": wireguard_go()}
        with PilotContender(site, "wireguard", _sets(knobs), [server.process.pid], server.forwarding) as pilot:
            yield pilot


@contextmanager
def openconnect(site: Site, server: Ocserv) -> Iterator[PilotContender]:
    """The engine openconnect over TLS, with an ocserv that runs already."""
    assert server.process is not None
    knobs = {
        "ENGINE": "openconnect", "GATEWAY_PIN": server.pin, "OPENCONNECT_SERVERS": server.endpoint,
        "OPENCONNECT_CREDENTIALS_FILE": server.credentials, "OPENCONNECT_DTLS": "off",
    }  # fmt: skip
    with PilotContender(site, "openconnect", _sets(knobs), [server.process.pid], server.forwarding) as pilot:
        yield pilot


def _sets(knobs: Mapping[str, object]) -> list[str]:
    return [word for name, value in knobs.items() for word in ("--set", f"HTCONDOR_VPN_{name}={value}")]
