"""The peer: `ssh -D` to an sshd in the DMZ, and the application's connections led there by a preload library."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

from benchmarks.processes import tree
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.proxies import LoginNode
from htcondor_vpn.testbed.site import Site

_PORT = 1080

_PROXYCHAINS = f"""\
strict_chain
quiet_mode
[ProxyList]
socks5 127.0.0.1 {_PORT}
"""


class SshSocks:
    """A logged-in ssh with a SOCKS port; `argv` puts a command of the node behind it by proxychains."""

    name = "ssh -D"

    def __init__(self, site: Site) -> None:
        self._site, self._folder = site, site.folder / "ssh-socks"
        self._exits = ExitStack()
        self._ssh: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SshSocks:
        with ExitStack() as exits:
            self._server = exits.enter_context(LoginNode(self._site.dmz, self._folder))
            (self._folder / "proxychains.conf").write_text(_PROXYCHAINS)
            log = self._folder / "ssh.log"
            self._ssh = self._site.node.start(
                [find_program("ssh", "openssh-client"), "-F", str(self._server.config), "-o", "BatchMode=yes",
                 "-o", "ExitOnForwardFailure=yes", "-D", f"127.0.0.1:{_PORT}",
                 self._server.destination, "echo ready; exec sleep infinity"],
                log=log,
            )  # fmt: skip
            exits.callback(_end, self._ssh)
            wait_for_log(log, rb"^ready", self._ssh)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def turn(self) -> nullcontext[None]:
        return nullcontext()

    def argv(self, command: Sequence[str]) -> list[str]:
        return [find_program("proxychains4"), "-f", str(self._folder / "proxychains.conf"), *command]

    def processes(self) -> list[int]:
        assert self._ssh is not None
        assert self._server.process is not None
        return [*tree(self._ssh.pid), *tree(self._server.process.pid)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)
