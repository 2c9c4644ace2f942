"""How the tests of engines have a pilot use what a site has already."""

import os
from contextlib import contextmanager

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway, SiteWireguardGateway, vpn_command
from htcondor_vpn.testbed.host import NETNS_FOLDER
from htcondor_vpn.testbed.proxies import Dante, LoginNode, Squid
from htcondor_vpn.testbed.site import DMZ
from htcondor_vpn.testbed.vpn_servers import Ocserv
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go
from htcondor_vpn.testbed.wireguard_server import WireguardServer

NAME_SERVERS = f"{plan.WORLD['dns'].v4} {plan.WORLD['dns'].v6}"


class Used:
    """A site's server that a pilot goes through: `server` may be stopped and started, `knobs` are the pilot's."""

    def __init__(self, server, knobs, *protocols):
        self.server, self.knobs = server, knobs
        host, port = server.endpoint.rsplit(":", 1)
        self.allowed = [(plan.DMZ_INSIDE.v4, f"{port}/{protocol}") for protocol in protocols or ["tcp"]]

    def run_argv(self, command, *options):
        return vpn_command("run", *sets(self.knobs), *options, "--", *command)

    def stop(self):
        self.server.stop()

    def start(self):
        self.server.start()


@contextmanager
def hosts(site, name, *addresses):
    """Has the node's files know these addresses of `name`, with others after `change`."""
    file = site.folder / "node.hosts"
    before = file.read_text()

    def change(*addresses):
        file.write_text(before + "".join(f"{address} {name}\n" for address in addresses))

    change(*addresses)
    try:
        yield change
    finally:
        file.write_text(before)


def pilots_processes(site):
    """The site's processes but for those in the DMZ, where dante and squid start helpers when they like."""
    dmz = os.stat(NETNS_FOLDER / DMZ).st_ino
    return {pid for pid in site.processes() if _network_of(pid) not in (dmz, None)}


def _network_of(pid):
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except (FileNotFoundError, PermissionError):
        return None  # it has just ended


def sets(knobs):
    return [word for name, value in knobs.items() for word in ("--set", f"HTCONDOR_VPN_{name}={value}")]


def use(kind, site, folder, exits):
    """Starts what the engine `kind` of these tests goes through, until `exits` are taken."""
    if kind == "proxy":
        squid = exits.enter_context(Squid(site.dmz, folder / "squid"))
        return Used(squid, {"ENGINE": "proxy", "PROXIES": squid.endpoint, "NAME_SERVERS": NAME_SERVERS})
    if kind == "socks5":
        dante = exits.enter_context(Dante(site.dmz, folder / "dante", password=True))
        knobs = {"ENGINE": "socks5", "SOCKS5_SERVERS": dante.endpoint, "NAME_SERVERS": NAME_SERVERS}
        return Used(dante, {**knobs, "SOCKS5_CREDENTIALS_FILE": dante.credentials})
    if kind in ("ssh", "ssh by a hop"):
        node = exits.enter_context(LoginNode(site.dmz, folder / "sshd"))
        knobs = {"ENGINE": "ssh", "SSH_HOSTS": "login", "SSH_CONFIG_FILE": node.config, "NAME_SERVERS": NAME_SERVERS}
        return Used(node, {**knobs, "SSH_JUMPS": "hop"} if kind == "ssh by a hop" else knobs)
    if kind == "wireguard":
        server = exits.enter_context(WireguardServer(site, folder / "wireguard"))
        return Used(server, by_wireguard(server.config), "udp")
    if kind == "wireguard by our gateway":
        gateway = exits.enter_context(SiteWireguardGateway(site.dmz, folder / "gateway"))
        return Used(gateway, by_wireguard(gateway.config), "udp")
    if kind.startswith("openconnect"):
        ocserv = exits.enter_context(Ocserv(site.dmz, folder / "ocserv", certificate="certificate" in kind))
        return Used(ocserv, by_openconnect(ocserv, DTLS="off" if "TLS" in kind.split() else "on"), "tcp", "udp")
    assert kind == "stream by a proxy"
    squid = exits.enter_context(Squid(site.dmz, folder / "squid", password=True))
    gateway = exits.enter_context(SiteGateway(site.dmz, folder / "gateway"))
    return Used(squid, {**trusting(gateway), "VIA_PROXY": squid.endpoint, "PROXY_CREDENTIALS_FILE": squid.credentials})


def by_wireguard(*configs):
    files = " ".join(map(str, configs))
    return {"ENGINE": "wireguard", "WIREGUARD_CONFIG_FILES": files, "WIREGUARD_GO": wireguard_go()}


def by_openconnect(ocserv, **more):
    knobs = {"SERVERS": ocserv.endpoint, "CREDENTIALS_FILE": ocserv.credentials, **more}
    if ocserv.certificate:
        del knobs["CREDENTIALS_FILE"]
        knobs.update(CERTIFICATE_FILE=ocserv.client_certificate, KEY_FILE=ocserv.client_key)
    named = {f"OPENCONNECT_{name}": value for name, value in knobs.items()}
    return {"ENGINE": "openconnect", "GATEWAY_PIN": ocserv.pin, **named}


def trusting(gateway):
    return {
        "GATEWAYS": gateway.endpoints[0], "GATEWAY_PIN_FILE": gateway.pin_file, "TOKEN_FILE": gateway.token_file,
    }  # fmt: skip
