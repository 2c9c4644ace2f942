"""An AnyConnect server as a site has one: Debian's ocserv in the DMZ, with kernel NAT, by that host's root."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from htcondor_vpn.gateway import pretend_privilege_drop
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.masquerade import masquerading
from htcondor_vpn.testbed.proxies import PASSWORD, USER, Server

_TABLE = "ocserv_of_a_test"
_NETWORK, _NETWORK_V6 = "10.8.0.0/24", "fd08::/64"


class Ocserv(Server):
    """An AnyConnect server for `USER` with `PASSWORD`, or with `certificate` for who has a client certificate.

    `pin` is its key's; `credentials`, `client_certificate` and `client_key` are a pilot's. `lines` are added to its
    configuration, where `routes` and `name_servers` say what it tells its clients. Unless it `forwards` while it runs,
    its clients get somewhere within `forwarding()` only.
    """

    as_root = True
    name, port, ready = "ocserv", 4443, rb"initialized ocserv|listening \(TCP\)"

    def __init__(
        self,
        host: Host,
        folder: Path,
        *,
        certificate: bool = False,
        dtls: bool = True,
        routes: Sequence[str] = ("default",),
        name_servers: Sequence[object] = (plan.WORLD["dns"].v4, plan.WORLD["dns"].v6),
        lines: Sequence[str] = (),
        forwards: bool = True,
    ) -> None:
        super().__init__(host, folder)
        self._forwards, self._forwarding = forwards, ExitStack()
        self.certificate, self._dtls = certificate, dtls
        self._told = [
            *(f"route = {route}" for route in routes), *(f"dns = {server}" for server in name_servers), *lines,
        ]  # fmt: skip
        self.credentials = folder / "credentials"
        self.credentials.touch(mode=0o600)
        self.credentials.write_text(f"{USER}:{PASSWORD}\n")
        self.client_certificate, self.client_key = folder / "client.crt", folder / "client.key"
        self._new_key("server", "/CN=gateway")
        self._new_key("client", f"/CN={USER}")
        self.pin = _pin(folder / "server.crt")

    def _new_key(self, name: str, subject: str) -> None:
        run_program([
            find_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-subj", subject, "-days", "2", "-keyout", str(self.folder / f"{name}.key"),
            "-out", str(self.folder / f"{name}.crt"),
        ])  # fmt: skip

    def argv(self) -> list[str]:
        folder = self.folder
        passwd = [find_program("ocpasswd", "ocserv"), "-c", str(folder / "passwd"), USER]
        run_program(passwd, stdin=f"{PASSWORD}\n{PASSWORD}\n")
        lines = [
            *(
                ['auth = "certificate"', f"ca-cert = {self.client_certificate}", "cert-user-oid = 2.5.4.3"]
                if self.certificate
                else [f'auth = "plain[passwd={folder}/passwd]"']
            ),
            f"listen-host = {plan.DMZ_INSIDE.v4}", f"tcp-port = {self.port}",
            *([f"udp-port = {self.port}"] if self._dtls else []),
            "run-as-user = root", "run-as-group = root", "isolate-workers = false", "use-occtl = false",
            f"socket-file = {folder}/socket", f"pid-file = {folder}/pid",
            f"server-cert = {folder}/server.crt", f"server-key = {folder}/server.key",
            "max-clients = 64", "max-same-clients = 64", "max-ban-score = 0", "keepalive = 60", "dpd = 30",
            "device = vpns", f"ipv4-network = {_NETWORK}", f"ipv6-network = {_NETWORK_V6}", "predictable-ips = true",
            *self._told,
        ]  # fmt: skip
        (folder / "ocserv.conf").write_text("\n".join(lines) + "\n")
        return [
            sys.executable, pretend_privilege_drop.__file__, find_program("ocserv"),
            "--foreground", "--config", str(folder / "ocserv.conf"),
        ]  # fmt: skip

    def start(self) -> None:
        self._forwarding.close()  # of one that was killed
        with ExitStack() as exits:
            if self._forwards:
                exits.enter_context(self.forwarding())
            super().start()
            self._forwarding = exits.pop_all()

    def stop(self) -> None:
        super().stop()
        self._forwarding.close()

    def forwarding(self) -> AbstractContextManager[None]:
        """Within, the DMZ passes on what comes from the server's clients, in its own name, and nothing else."""
        return masquerading(self.host, _TABLE, "vpns*", _NETWORK, _NETWORK_V6)


def _pin(certificate: Path) -> str:
    """The pin of a certificate's key (RFC 7469)."""
    from cryptography import x509

    from htcondor_vpn.gateway.trust.credentials import pin_of

    return pin_of(x509.load_pem_x509_certificate(certificate.read_bytes()))
