"""The peer: openconnect with --script-tun and vpnns on the node, ocserv with kernel NAT in the DMZ, TLS.

This is the set-up of the paper that the field measures itself by (CHEP 2021), from Debian's packages.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

from benchmarks.processes import tree
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.proxies import PASSWORD, USER
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.testbed.vpn_servers import Ocserv

_NAME = "bench"


def ocserv(site: Site) -> Ocserv:
    """A server, to be entered, for this peer and for our own engine; clients' packets pass in their turn."""
    return Ocserv(site.dmz, site.folder / "ocserv", dtls=False, forwards=False)


class OpenconnectPeer:
    """A client of `server` from `with` on; `argv` puts a command of the node into its network."""

    name = "openconnect --script-tun + vpnns"

    def __init__(self, site: Site, server: Ocserv) -> None:
        self._site, self._server = site, server
        self._folder = site.folder / "vpnns"
        self._exits = ExitStack()

    def __enter__(self) -> OpenconnectPeer:
        with ExitStack() as exits:
            self._folder.mkdir()
            self._connect(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def turn(self) -> AbstractContextManager[object]:
        return self._server.forwarding()

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["env", f"HOME={self._folder}", find_program("vpnns", "ocproxy"), "--name", _NAME, "--", *command]

    def processes(self) -> list[int]:
        assert self._server.process is not None
        return [*tree(self._server.process.pid), *tree(self._client.pid)]

    def _connect(self, exits: ExitStack) -> None:
        folder, node = self._folder, self._site.node
        holder = node.start(self.argv(["sleep", "infinity"]), log=folder / "vpnns.log")
        exits.callback(_end, holder)
        log = folder / "openconnect.log"
        argv = [
            "env", f"HOME={folder}", find_program("openconnect"), "--protocol=anyconnect", "--no-dtls",
            "--user", USER, "--passwd-on-stdin", "--non-inter", "--servercert", self._server.pin,
            "--script-tun", "--script", f"{find_program('vpnns', 'ocproxy')} --name {_NAME} --attach",
            f"https://{self._server.endpoint}/",
        ]  # fmt: skip
        told, tell = os.pipe()
        self._client = node.start(argv, log=log, stdin=told)
        os.close(told)
        with os.fdopen(tell, "w") as pipe:
            pipe.write(PASSWORD + "\n")
        exits.callback(_end, self._client)
        wait_for_log(log, rb"Configured as|Connected as|Established", self._client)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)
