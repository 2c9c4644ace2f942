"""The peer: openconnect with --script-tun and vpnns on the node, ocserv with kernel NAT in the DMZ, TLS.

This is the set-up of the paper that the field measures itself by (CHEP 2021), from Debian's packages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.processes import tree
from htcondor_vpn.gateway import pretend_privilege_drop
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.site import Site

_PORT = 4443
_NETWORK = "10.8.0.0/24"
_NAME = "bench"
_USER, _PASSWORD = "pilot", "not a secret on this site"

_OCSERV = """\
auth = "plain[passwd={folder}/passwd]"
tcp-port = {port}
run-as-user = root
run-as-group = root
socket-file = {folder}/ocserv.sock
server-cert = {folder}/server.crt
server-key = {folder}/server.key
isolate-workers = false
max-clients = 8
max-same-clients = 8
keepalive = 60
device = vpns
ipv4-network = 10.8.0.0
ipv4-netmask = 255.255.255.0
route = default
use-occtl = false
pid-file = {folder}/ocserv.pid
"""


class OpenconnectPeer:
    """A connected VPN on the site, from `with` on; `argv` puts a command of the node into it.

    Its packets get on from the DMZ only while that forwards (`Site.direct_route`).
    """

    name = "openconnect --script-tun + vpnns"
    forwards = True

    def __init__(self, site: Site) -> None:
        self._site = site
        self._folder = site.folder / "openconnect"
        self._exits = ExitStack()

    def __enter__(self) -> OpenconnectPeer:
        with ExitStack() as exits:
            self._folder.mkdir()
            self._serve(exits)
            self._connect(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["env", f"HOME={self._folder}", find_program("vpnns", "ocproxy"), "--name", _NAME, "--", *command]

    def processes(self) -> list[int]:
        return [pid for process in (self._server, self._client) for pid in tree(process.pid)]

    def _serve(self, exits: ExitStack) -> None:
        folder, dmz = self._folder, self._site.dmz
        run_program([
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway", "-days", "2",
            "-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt"),
        ])  # fmt: skip
        passwd = [find_program("ocpasswd", "ocserv"), "-c", str(folder / "passwd"), _USER]
        run_program(passwd, stdin=f"{_PASSWORD}\n{_PASSWORD}\n")
        (folder / "ocserv.conf").write_text(_OCSERV.format(folder=folder, port=_PORT))
        nft = find_program("nft", "nftables")
        chain = f"type nat hook postrouting priority 100; ip saddr {_NETWORK} masquerade;"
        dmz.run([nft, "-f", "-"], stdin=f"table ip peer {{\n chain out {{ {chain} }}\n}}\n", as_root=True, check=True)
        exits.callback(dmz.run, [nft, "delete", "table", "ip", "peer"], as_root=True)
        log = folder / "ocserv.log"
        argv = [
            sys.executable, pretend_privilege_drop.__file__, find_program("ocserv"),
            "--foreground", "--config", str(folder / "ocserv.conf"),
        ]  # fmt: skip
        self._server = dmz.start(argv, as_root=True, log=log)
        exits.callback(_end, self._server)
        wait_for_log(log, rb"initialized ocserv|listening", self._server)

    def _connect(self, exits: ExitStack) -> None:
        folder, node = self._folder, self._site.node
        holder = node.start(self.argv(["sleep", "infinity"]), log=folder / "vpnns.log")
        exits.callback(_end, holder)
        log = folder / "openconnect.log"
        # Whose key it is does not matter to its speed.
        key = run_program(["openssl", "x509", "-in", str(folder / "server.crt"), "-noout", "-pubkey"])
        argv = [
            "env", f"HOME={folder}", find_program("openconnect"), "--protocol=anyconnect", "--no-dtls",
            "--user", _USER, "--passwd-on-stdin", "--non-inter", "--servercert", _pin(key),
            "--script-tun", "--script", f"{find_program('vpnns', 'ocproxy')} --name {_NAME} --attach",
            f"https://{plan.DMZ_INSIDE.v4}:{_PORT}/",
        ]  # fmt: skip
        told, tell = os.pipe()
        self._client = node.start(argv, log=log, stdin=told)
        os.close(told)
        with os.fdopen(tell, "w") as pipe:
            pipe.write(_PASSWORD + "\n")
        exits.callback(_end, self._client)
        wait_for_log(log, rb"Configured as|Connected as|Established", self._client)


def _pin(public_key_pem: str) -> str:
    import base64
    import hashlib

    der = base64.b64decode("".join(public_key_pem.split("-----")[2].split()))
    return "pin-sha256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def _end(process) -> None:  # type: ignore[no-untyped-def]
    process.kill()
    process.wait(10)
