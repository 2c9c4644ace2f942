"""A WireGuard server as VPN admins run them: root's, in the DMZ, with the kernel's forwarding and NAT.

Its implementation is wireguard-go, since not every kernel has its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from contextlib import AbstractContextManager, ExitStack
from ipaddress import ip_network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.masquerade import masquerading
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go
from htcondor_vpn.wire.wireguard import Device, Peer, key_text

PORT = 51820
_LINK = "wg-server"
_NETWORKS = "10.9.0.0/24", "fd09::/64"
_SERVER, _CLIENT = ("10.9.0.1", "fd09::1"), ("10.9.0.2", "fd09::2")
_START_SECONDS, _STOP_SECONDS = 30.0, 10.0

_CLIENT_CONFIG = """\
[Interface]
PrivateKey = {private}
Address = {address}
DNS = {dns}
[Peer]
PublicKey = {public}
PresharedKey = {shared}
Endpoint = {endpoint}
AllowedIPs = 0.0.0.0/0, ::/0
"""


class WireguardServer:
    """Up from `with` on, for one client, whose file is `config`; `stop` and `start` may be called in between.

    Unless it `forwards` while it runs, its client gets somewhere within `forwarding()` only.
    """

    def __init__(self, site: Site, folder: Path, *, forwards: bool = True) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._dmz, self.log = site.dmz, folder / "wireguard-go.log"
        self._private, self._client, self._shared = os.urandom(32), os.urandom(32), os.urandom(32)
        self._forwards, self._exits = forwards, ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"{plan.DMZ_INSIDE.v4}:{PORT}"
        self.config = folder / "wg.conf"
        self.config.touch(0o600)
        self.write_config(public_key(self._private))

    def write_config(self, server_key: bytes) -> None:
        """Writes the client's file, with the server's public key or another one."""
        self.config.write_text(
            _CLIENT_CONFIG.format(
                private=key_text(self._client), address=", ".join(_CLIENT), dns=", ".join(map(str, plan.WORLD["dns"])),
                public=key_text(server_key), shared=key_text(self._shared), endpoint=self.endpoint,
            )  # fmt: skip
        )

    @property
    def server_key(self) -> bytes:
        """The public key."""
        return public_key(self._private)

    def __enter__(self) -> WireguardServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it; raises TimeoutError or `ProgramFailed`."""
        with ExitStack() as exits:
            process = self._dmz.start(
                [str(wireguard_go()), "-f", _LINK], as_root=True, log=self.log,
                env={"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"},
            )  # fmt: skip
            exits.callback(_end, process)
            self.process = process
            control = _control(process)
            asyncio.run(self._configure(control))
            ip = find_program("ip")
            for words in (
                *(["addr", "add", f"{address}/{length}", "dev", _LINK] for address, length in zip(_SERVER, (24, 64))),
                ["link", "set", _LINK, "mtu", "1420", "up"],
            ):
                self._dmz.run([ip, *words], as_root=True, check=True)
            if self._forwards:
                exits.enter_context(self.forwarding())
            self._exits = exits.pop_all()

    def forwarding(self) -> AbstractContextManager[None]:
        """Within, the DMZ passes on what comes from the client, in its own name, and nothing else."""
        return masquerading(self._dmz, "wireguard_of_a_test", _LINK, *_NETWORKS)

    async def _configure(self, control: socket.socket) -> None:
        device = Device(control)
        networks = tuple(ip_network(address) for address in _CLIENT)
        await device.configure(self._private, [Peer(public_key(self._client), networks, self._shared)], PORT)
        device.close()

    def stop(self) -> None:
        """Kills it and removes its rules. May be repeated."""
        self._exits.close()


def public_key(private_key: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def _control(process: subprocess.Popen[bytes]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            sock.connect(f"/var/run/wireguard/{_LINK}.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("the WireGuard server does not start") from None
            time.sleep(0.01)
        else:
            return sock


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(_STOP_SECONDS)
