"""Which engines a pilot may use, by its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from htcondor_vpn.errors import ConfigError
from htcondor_vpn.knob_values import GatewayEndpoint, is_address
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.linux import wireguard_go
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carrier import Carrier
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.tunnel.carriers.http_proxy import HttpProxy, ThroughProxy
from htcondor_vpn.tunnel.carriers.openconnect import OpenConnect
from htcondor_vpn.tunnel.carriers.openconnect_process import Login, find_library
from htcondor_vpn.tunnel.carriers.proxied import ProxiedCarrier, Proxy
from htcondor_vpn.tunnel.carriers.server import Endpointed, Server, Way
from htcondor_vpn.tunnel.carriers.socks5 import Socks5
from htcondor_vpn.tunnel.carriers.ssh import START_SECONDS, SshForward
from htcondor_vpn.tunnel.carriers.token import check_private_key, read_credentials, renewed_token
from htcondor_vpn.tunnel.carriers.wireguard import WireguardCarrier
from htcondor_vpn.tunnel.carriers.wireguard_config import read_config
from htcondor_vpn.tunnel.members import Lone, Member, Named
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.workers.workers import Workers
from htcondor_vpn.wire.dialing import Endpoint
from htcondor_vpn.wire.renewed import Renewed
from htcondor_vpn.wire.trust import Pins, Trust, read_pins

#: Makes carriers, or a pool of them, given a folder for what they need there and the workers that are to open their
#: flows; called in the engine's process, as often as there is a new one.
Make = Callable[[Path], Sequence[Carrier]]
MakePool = Callable[[Path, Workers], Pool]

#: By which knob each engine is configured, and its value.
_HOSTS = {
    "stream": ("GATEWAYS", "HOST:PORT"),
    "wireguard": ("WIREGUARD_CONFIG_FILES", "paths"),
    "openconnect": ("OPENCONNECT_SERVERS", "HOST:PORT"),
    "proxy": ("PROXIES", "HOST:PORT"),
    "socks5": ("SOCKS5_SERVERS", "HOST:PORT"),
    "ssh": ("SSH_HOSTS", "[USER@]HOST"),
}
#: And by which option, where there is one.
_OPTIONS = {"stream": " (--gateway)"}
_WHAT = {
    "stream": "gateway", "wireguard": "WireGuard server", "openconnect": "VPN server", "proxy": "proxy",
    "socks5": "SOCKS server", "ssh": "login node",
}  # fmt: skip

_DNS_PORT = 53

#: A probe's share of the time after which nothing has answered: one name server's silence is not the proxy's.
_PROBE_SHARE = 0.75


def engine_pools(settings: Settings) -> Callable[[Path, Workers], list[Pool]]:
    """Returns what makes the pools to choose from, in the order in which they are to be tried; see `MakePool`.

    Everything that can be wrong with the settings is found here: raises `ConfigError`, `ConfigUnreadable`,
    `TokenUnusable` or `ProgramMissing`.
    """
    makers = [maker(kind, settings) for kind in _chosen(settings)]
    return lambda run_dir, workers: [make(run_dir, workers) for make in makers]


def maker(kind: str, settings: Settings) -> MakePool:
    """Returns what makes the pool of engine `kind`; raises as `engine_pools`, also where nothing is configured."""
    knob, form = _HOSTS[kind]
    if not settings.values[PREFIX + knob]:
        option = _OPTIONS.get(kind, "")
        raise ConfigError(f"no {_WHAT[kind]} is configured", f"set {PREFIX}{knob}{option} to a list of {form}")
    if kind == "stream":
        return gateway_maker(settings.gateways, settings)
    kinds = {
        "wireguard": _wireguard_servers, "openconnect": _vpn_servers, "proxy": _proxies, "socks5": _socks_servers,
        "ssh": _login_nodes,
    }  # fmt: skip
    make = kinds[kind](settings)
    return lambda folder, _: Pool(kind, [Lone(carrier) for carrier in make(folder)], *_times(settings))


def gateway_maker(gateways: Sequence[GatewayEndpoint], settings: Settings) -> MakePool:
    """Returns what makes the pool of these gateways; raises as `engine_pools`."""
    certificate = None
    if settings.certificate_file is not None:
        check_private_key(settings.key_file)
        certificate = settings.certificate_file, settings.key_file
    trust = Trust(_pins(settings), settings.gateway_ca_file, certificate)
    token = renewed_token(settings.token_file) if settings.token_file or not certificate else None
    via = settings.via_proxy
    credentials = _proxy_credentials(settings) if via else None

    def make(_: Path, workers: Workers) -> Pool:
        workers.admit(trust, token)

        def gateway(host: str, port: int, way: Way | None = None, address: str = "") -> Carrier:
            connections = GatewayConnections(host, port, trust, token, way, address)
            return Gateway(connections, workers.opener(connections))

        def member(host: str, port: int, weight: float) -> Member:
            if via is not None:  # the proxy resolves the name, and chooses among its addresses
                proxy = HttpProxy(via[0], via[1], f"{PREFIX}VIA_PROXY", credentials)
                return Lone(gateway(host, port, ThroughProxy(proxy, host, port)), weight)
            if is_address(host):
                return Lone(gateway(host, port), weight)

            def at(endpoint: Endpoint) -> Carrier:
                return gateway(host, port, Endpointed(endpoint), endpoint[1][0])

            return Named(host, port, f"{PREFIX}GATEWAYS", at, weight)

        return Pool("stream", [member(*each) for each in gateways], *_times(settings))

    return make


def _times(settings: Settings) -> tuple[float, float]:
    return settings.probe_interval, settings.probe_timeout


def _chosen(settings: Settings) -> list[str]:
    if settings.engine == "auto":
        configured = [kind for kind, (knob, _) in _HOSTS.items() if settings.values[PREFIX + knob]]
        chosen = [kind for kind in settings.engine_order if kind in configured]
        if not chosen:
            names = [f"{PREFIX}{_HOSTS[kind][0]}" for kind in settings.engine_order]
            raise ConfigError("no engine is configured to choose from", f"set one of {', '.join(names)}")
        return chosen
    return [settings.engine]


def _wireguard_servers(settings: Settings) -> Make:
    program = wireguard_go.find(settings.wireguard_go, f"{PREFIX}WIREGUARD_GO")
    seconds = _PROBE_SHARE * settings.probe_timeout
    servers = []
    for path in settings.wireguard_config_files:
        config = read_config(path)
        names = [(address, _DNS_PORT) for address in config.name_servers] or settings.name_servers
        if not names:
            raise ConfigError(f"{path} names no name server", f"add DNS = ADDRESS to it, or set {PREFIX}NAME_SERVERS")
        servers.append((config, names))

    def make(_: Path) -> list[Carrier]:
        return [WireguardCarrier(config, program, names, seconds) for config, names in servers]

    return make


def _proxies(settings: Settings) -> Make:
    credentials = _proxy_credentials(settings)
    proxied = _proxied(settings)

    def make(_: Path) -> list[Carrier]:
        return [proxied(HttpProxy(host, port, f"{PREFIX}PROXIES", credentials)) for host, port in settings.proxies]

    return make


def _socks_servers(settings: Settings) -> Make:
    credentials = read_credentials(settings.socks5_credentials_file, f"{PREFIX}SOCKS5_CREDENTIALS_FILE")
    proxied = _proxied(settings)
    knob = f"{PREFIX}SOCKS5_SERVERS"

    def make(_: Path) -> list[Carrier]:
        servers = [Server("SOCKS server", host, port, knob) for host, port in settings.socks5_servers]
        return [proxied(Socks5(server.name, server, credentials)) for server in servers]

    return make


def _login_nodes(settings: Settings) -> Make:
    find_program("ssh", "openssh-client")
    proxied = _proxied(settings, START_SECONDS)
    jumps, config = settings.ssh_jumps, settings.ssh_config_file

    def make(run_dir: Path) -> list[Carrier]:
        return [
            proxied(SshForward(host, jumps, config, run_dir / f"ssh{number}.sock"))
            for number, host in enumerate(settings.ssh_hosts)
        ]

    return make


def _vpn_servers(settings: Settings) -> Make:
    find_library()
    given = f"{PREFIX}OPENCONNECT_CREDENTIALS_FILE"
    user, password = read_credentials(settings.openconnect_credentials_file, given) or ("", "")
    certificate, key = settings.openconnect_certificate_file, settings.openconnect_key_file
    if not (password or certificate):
        raise ConfigError(
            "nothing says how the VPN server knows us", f"set {given}, or {PREFIX}OPENCONNECT_CERTIFICATE_FILE"
        )
    if certificate is not None:
        check_private_key(key or certificate, f"{PREFIX}OPENCONNECT_{'KEY' if key else 'CERTIFICATE'}_FILE")
    login = Login(user, password, certificate, key, _pins(settings), settings.gateway_ca_file,
                  settings.openconnect_dtls == "on")  # fmt: skip
    servers, seconds = settings.name_servers, _PROBE_SHARE * settings.probe_timeout

    def make(_: Path) -> list[Carrier]:
        return [OpenConnect(host, port, login, servers, seconds) for host, port in settings.openconnect_servers]

    return make


def _pins(settings: Settings) -> Pins:
    """The pins now: those of the setting, and those that the file holds."""
    given = settings.gateway_pin
    if settings.gateway_pin_file is None:
        return lambda: given
    file = Renewed(settings.gateway_pin_file, read_pins, "what it held last")
    return lambda: (*given, *file())


def _proxied(settings: Settings, start_seconds: float = 0.0) -> Callable[[Proxy], Carrier]:
    servers = settings.name_servers
    if not servers:
        raise ConfigError(
            "no name server is configured, and a proxy has none",
            f"set {PREFIX}NAME_SERVERS to addresses that can be reached through it",
        )
    seconds = _PROBE_SHARE * settings.probe_timeout
    return lambda proxy: ProxiedCarrier(proxy, servers, seconds, start_seconds)


def _proxy_credentials(settings: Settings) -> tuple[str, str] | None:
    return read_credentials(settings.proxy_credentials_file, f"{PREFIX}PROXY_CREDENTIALS_FILE")
