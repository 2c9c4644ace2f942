"""The site's gateway in the DMZ, and how a pilot on the node is told of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from htcondor_vpn.testbed import leftovers, plan
from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go

PORT = 8443
WIREGUARD_PORT = 51821


def vpn_command(*words: str) -> list[str]:
    """The argv of the project's own command, with the interpreter that runs this."""
    return [sys.executable, "-m", "htcondor_vpn.cli.main", *words]


class SiteGateway:
    """A stream gateway on `host` as its ordinary user, with files in `folder`; a context manager, up inside.

    `env` is added to its environment, `state_folder` is where its key and tokens are, else in `folder`. `token_file`
    and `pin_file` are what a pilot needs.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        state_folder: Path | None = None,
    ) -> None:
        self.host, self.folder, self._options, self._env = host, folder, options, env
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = folder / "gateway.log"
        self.state_folder = state_folder or folder / "gateway"
        self.token_file = folder / "pilot.token"
        self.pin_file = self.state_folder / "gateway.pin"
        self.endpoints = (f"{plan.DMZ_INSIDE.v4}:{PORT}", f"[{plan.DMZ_INSIDE.v6}]:{PORT}")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SiteGateway:
        self.start()
        if not self.token_file.exists():
            self.token("add", "pilot", "-o", str(self.token_file))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and returns when it listens; raises `LogTimeout` with what it said."""
        self.log.touch()
        listen = [word for endpoint in self.endpoints for word in ("--listen", endpoint)]
        start_bytes = self.log.stat().st_size
        self.process = self.host.start(
            vpn_command("gateway", "--dir", str(self.state_folder), *listen, *self._options),
            log=self.log, env=self._env,
        )  # fmt: skip
        wait_for_log(self.log, b"^ready$", self.process, start_bytes=start_bytes)

    def stop(self) -> None:
        """Ends it, with whatever flows it has. May be repeated."""
        if self.process is not None:
            leftovers.kill(self.process)
            self.process = None

    def token(self, *words: str) -> str:
        """Runs `htcondor-vpn gateway token …` on this gateway's folder and returns what it prints."""
        argv = vpn_command("gateway", "--dir", str(self.state_folder), "token", *words)
        return self.host.run(argv, check=True).stdout

    def run_argv(self, command: Sequence[str], *options: str) -> list[str]:
        """The argv of `htcondor-vpn run … -- command` for a pilot of this gateway; later `options` win."""
        told = ["--gateway", self.endpoints[0], "--pin-file", str(self.pin_file), "--token-file", str(self.token_file)]
        return vpn_command("run", *told, *options, "--", *command)


class SiteWireguardGateway:
    """A WireGuard gateway of ours on `host` as its ordinary user, or its root, with files in `folder`.

    A context manager, up inside. `config` is what a pilot needs, `endpoint` where it listens; `program` is Python in
    place of our own that prepares and then runs it.
    """

    def __init__(
        self,
        host: Host,
        folder: Path,
        port: int = WIREGUARD_PORT,
        *,
        as_root: bool = False,
        program: str | None = None,
    ) -> None:
        self.host, self.folder, self._as_root, self._program = host, folder, as_root, program
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log, self.config = folder / "gateway.log", folder / "pilot.conf"
        self.endpoint = f"{plan.DMZ_INSIDE.v4}:{port}"
        self._options = ["--dir", str(folder / "gateway"), "--config", str(folder / "gateway.conf")]
        (folder / "gateway.conf").write_text(
            f"HTCONDOR_VPN_GATEWAY_KIND = wireguard\nHTCONDOR_VPN_GATEWAY_WIREGUARD_ENDPOINT = {self.endpoint}\n"
            f"HTCONDOR_VPN_WIREGUARD_GO = {wireguard_go()}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SiteWireguardGateway:
        self.pilots("add", "pilot", "-o", str(self.config))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and returns when it listens; raises `LogTimeout` with what it said."""
        self.log.touch()
        start_bytes = self.log.stat().st_size
        argv = vpn_command("gateway", *self._options)
        if self._program is not None:
            argv[1:3] = ["-c", self._program]
        self.process = self.host.start(argv, log=self.log, as_root=self._as_root)
        wait_for_log(self.log, b"^ready$", self.process, start_bytes=start_bytes)

    def stop(self) -> None:
        """Kills it, with whatever flows it has. May be repeated."""
        if self.process is not None:
            leftovers.kill(self.process)
            self.process = None

    def pilots(self, *words: str) -> str:
        """Runs `htcondor-vpn gateway wireguard …` on this gateway's folder and returns what it prints."""
        return self.verb("wireguard", *words)

    def verb(self, *words: str) -> str:
        """Runs `htcondor-vpn gateway …` likewise."""
        argv = vpn_command("gateway", *self._options, *words)
        return self.host.run(argv, as_root=self._as_root, check=True).stdout
