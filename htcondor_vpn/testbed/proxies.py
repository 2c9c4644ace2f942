"""What a site may have already, run in its DMZ as an ordinary user with a configuration of ours: squid, dante, sshd.

Their own services are not touched. Each is a context manager, up inside; `stop` and `start` may be called in between.
"""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import leftovers, plan
from htcondor_vpn.testbed.host import Host, outer_id
from htcondor_vpn.testbed.logs import wait_for_log

USER, PASSWORD = "pilot", "a secret"  # noqa: S105  known to everyone, on purpose
_SHADOW = "/etc/shadow"


class Server:
    """One program on `host`, with its files in `folder`; a context manager, up inside."""

    name: str
    port: int
    ready: bytes
    as_root = False

    def __init__(self, host: Host, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.host, self.folder = host, folder
        self.endpoint = f"{plan.DMZ_INSIDE.v4}:{self.port}"
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        """Writes the configuration, and returns the command line."""
        raise NotImplementedError

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self is newer than our Python
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and returns when it listens; raises `LogTimeout` with what it said."""
        self.log.touch()
        start_bytes = self.log.stat().st_size
        self.process = self.host.start(self.argv(), log=self.log, as_root=self.as_root)
        wait_for_log(self.log, self.ready, self.process, start_bytes=start_bytes)

    def stop(self) -> None:
        """Kills it with its own children, and whatever flows they have. May be repeated."""
        if self.process is None:
            return
        leftovers.kill(self.process, with_children=True)
        self.process = None


def _hashed(scheme: str) -> str:
    argv = [find_program("openssl"), "passwd", scheme, PASSWORD]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


class Squid(Server):
    """An HTTP proxy that allows CONNECT to every port; with `password`, only for `USER` with `PASSWORD`.

    With `web` it also fetches pages, for everybody.
    """

    name, port, ready = "squid", 3128, rb"Accepting HTTP Socket connections"

    def __init__(self, host: Host, folder: Path, *, password: bool = False, web: bool = False) -> None:
        super().__init__(host, folder)
        self._password, self._web = password, web
        #: What a pilot needs to know, for its PROXY_CREDENTIALS_FILE.
        self.credentials = folder / "credentials"
        self.credentials.touch(mode=0o600)
        self.credentials.write_text(f"{USER}:{PASSWORD}\n")

    def argv(self) -> list[str]:
        users = self.folder / "users"
        users.write_text(f"{USER}:{_hashed('-apr1')}\n")
        lines = [
            f"http_port {plan.DMZ_INSIDE.v4}:{self.port}",
            f"http_port [{plan.DMZ_INSIDE.v6}]:{self.port}",
            "acl CONNECT method CONNECT",
            *(
                [
                    f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {users}",
                    "acl known proxy_auth REQUIRED",
                    "auth_param basic children 2 startup=2",
                    "http_access allow CONNECT known",
                ]
                if self._password
                else ["http_access allow CONNECT"]
            ),
            *(["http_access allow !CONNECT"] if self._web else []),
            "http_access deny all",
            "cache deny all",
            "cache_mem 0 MB",
            "access_log none",
            "cache_log /dev/stderr",
            f"pid_filename {self.folder}/squid.pid",
            f"coredump_dir {self.folder}",
            "pinger_enable off",
            "shutdown_lifetime 0 seconds",
            "via off",
            f"visible_hostname dmz.{plan.ZONE}",
            f"hosts_file {self.folder}/hosts",
            "max_filedescriptors 4096",
        ]
        (self.folder / "hosts").touch()
        file = self.folder / "squid.conf"
        file.write_text("\n".join(lines) + "\n")
        # -N: one process, and no change of account; -d 1: its log on stderr too
        return [find_program("squid"), "-N", "-d", "1", "-f", str(file)]


class Dante(Server):
    """A SOCKS server; with `password`, only for the host's ordinary user with `PASSWORD`.

    dante asks the system for passwords: the host gets a password file of ours while it runs.
    """

    name, port, ready = "danted", 1080, rb"running"

    def __init__(self, host: Host, folder: Path, *, password: bool = False) -> None:
        super().__init__(host, folder)
        self._password = password
        self._account = pwd.getpwuid(outer_id("uid")).pw_name
        #: What a pilot needs to know, for its SOCKS5_CREDENTIALS_FILE.
        self.credentials = folder / "credentials"
        self.credentials.touch(mode=0o600)
        self.credentials.write_text(f"{self._account}:{PASSWORD}\n")

    def start(self) -> None:
        if self._password:
            shadow = self.folder / "shadow"
            shadow.write_text(f"{self._account}:{_hashed('-6')}:19000:0:99999:7:::\n")
            self.host.run(["mount", "--bind", str(shadow), _SHADOW], as_root=True, check=True)
        super().start()

    def stop(self) -> None:
        running = self.process is not None
        super().stop()
        if running and self._password:
            self.host.run(["umount", _SHADOW], as_root=True, check=True)

    def argv(self) -> list[str]:
        lines = [
            "logoutput: stderr",
            f"internal: {plan.DMZ_INSIDE.v4} port = {self.port}",
            f"external: {plan.DMZ_OUTSIDE.v4}",
            f"external: {plan.DMZ_OUTSIDE.v6}",
            f"socksmethod: {'username' if self._password else 'none'}",
            "clientmethod: none",
            f"user.privileged: {self._account}",
            f"user.unprivileged: {self._account}",
            "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }",
            "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }",
            "socks pass { from: 0.0.0.0/0 to: ::/0 }",
        ]
        file = self.folder / "danted.conf"
        file.write_text("\n".join(lines) + "\n")
        return [find_program("danted", "dante-server"), "-f", str(file), "-p", str(self.folder / "pid")]


class LoginNode(Server):
    """An sshd to log in to by key; `config` is an ssh_config for that, and `destination` its alias there."""

    name, port, ready = "sshd", 2222, rb"Server listening on"
    destination = "login"

    def __init__(self, host: Host, folder: Path) -> None:
        super().__init__(host, folder)
        self.config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"
        self.host_key = self._key("host")
        self.user_key = self._key("user")
        account = pwd.getpwuid(outer_id("uid")).pw_name
        (folder / "authorized_keys").write_bytes(self.user_key.with_suffix(".pub").read_bytes())
        self.know(self.host_key)
        common = [
            f"  User {account}", f"  Port {self.port}", f"  IdentityFile {self.user_key}", "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {self.known_hosts}", "  GlobalKnownHostsFile /dev/null", "  HostKeyAlias dmz",
        ]  # fmt: skip
        self.config.write_text("\n".join([
            "Host login", f"  HostName {plan.DMZ_INSIDE.v4}", *common,
            "Host hop", f"  HostName {plan.DMZ_INSIDE.v4}", *common,
        ]) + "\n")  # fmt: skip

    def _key(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            argv = [find_program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
            self.host.run(argv, check=True)
        return path

    def know(self, key: Path) -> None:
        """Makes `key` the one by which the client knows this host."""
        kind, public, *_ = key.with_suffix(".pub").read_text().split()
        self.known_hosts.write_text(f"dmz {kind} {public}\n")

    def other_key(self) -> Path:
        """A key that is not this host's."""
        return self._key("other")

    def argv(self) -> list[str]:
        lines = [
            f"Port {self.port}", f"ListenAddress {plan.DMZ_INSIDE.v4}", f"HostKey {self.host_key}",
            f"PidFile {self.folder}/sshd.pid", f"AuthorizedKeysFile {self.folder}/authorized_keys", "UsePAM no",
            "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "AllowTcpForwarding yes",
            "MaxStartups 100",
        ]  # fmt: skip
        file = self.folder / "sshd_config"
        file.write_text("\n".join(lines) + "\n")
        return [find_program("sshd", "openssh-server"), "-D", "-e", "-f", str(file)]
