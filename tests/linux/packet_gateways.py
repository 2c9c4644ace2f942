"""What every gateway for packets carries and refuses, and what it could leave behind."""

import signal
import sys

from engine_site import Used
from vpn_faults import ECHO, HERE

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services.oddities import ECHO_PORT


class OcservGateway:
    """The gateway in the DMZ, as its root or its ordinary user, until the end of the test."""

    endpoint = f"{plan.DMZ_INSIDE.v4}:{PORT}"

    def __init__(self, host, folder, as_root):
        self.host, self.folder, self.as_root = host, folder, as_root
        folder.mkdir(mode=0o700)
        self.credentials, self.log = folder / "vpn.password", folder / "log"
        self.verb("add", "pilot", "-o", str(self.credentials))
        self.start()
        self.pin = (folder / "g/gateway.pin").read_text().strip()

    def command(self, *words):
        return vpn_command("gateway", "--dir", str(self.folder / "g"), *words)

    def verb(self, *words):
        return self.any_verb("ocserv", *words)

    def any_verb(self, *words):
        return self.host.run(self.command(*words), as_root=self.as_root, check=True).stdout

    def start(self, *options):
        self.log.touch()
        start_bytes = self.log.stat().st_size
        argv = self.command("--kind", "ocserv", *options)
        self.process = self.host.start(argv, as_root=self.as_root, log=self.log)
        wait_for_log(self.log, b"^ready$", self.process, start_bytes=start_bytes)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)

    def used(self):
        knobs = {"ENGINE": "openconnect", "OPENCONNECT_SERVERS": self.endpoint, "GATEWAY_PIN": self.pin}
        return Used(self, {**knobs, "OPENCONNECT_CREDENTIALS_FILE": self.credentials}, "tcp", "udp")


def network(host):
    """What a gateway could leave behind in a host's network."""
    show = [find_program("sh"), "-c", "nft list ruleset; ip link; sysctl net.ipv4.ip_forward"]
    return host.run(show, as_root=True).stdout


def check_everything(pilot):
    """Datagrams, echo requests, and connections by name, of both IP versions, in the gateway's name."""
    for address in ECHO:
        asked = f"{address},{ECHO_PORT},1000,3"
        assert pilot.ask(f"{sys.executable} {HERE}/udp_client.py {asked}") == "ok"
        assert "1 received" in pilot.ask(f"ping -n -c 1 -W 15 {address}")
    assert plan.DMZ_OUTSIDE.v4.exploded in pilot.ask(f"curl -4 -s -m 20 http://http.{plan.ZONE}/peer")
    assert plan.DMZ_OUTSIDE.v6.compressed in pilot.ask(f"curl -6 -s -m 20 http://http.{plan.ZONE}/peer")


def check_forbidden(pilot, *more):
    """Neither the gateway itself nor the node's network; `more` are further addresses and ports."""
    code = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"
    for forbidden in (f"{plan.DMZ_INSIDE.v4} {PORT}", f"{plan.DMZ_OUTSIDE.v4} {PORT}", f"{plan.NODE.v4} 22", *more):
        assert pilot.ask(f'{sys.executable} -c "{code}" {forbidden}') == "True"
