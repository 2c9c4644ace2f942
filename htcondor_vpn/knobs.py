"""Every knob, in one table: name, type, unit, default, text. The checker and the documentation come from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.denied_destinations import denied_destinations
from htcondor_vpn.route_rules import route_rules

PREFIX = "HTCONDOR_VPN_"


@dataclass(frozen=True)
class Knob:
    """One setting. `unit` is what a bare number means; `parse` raises ValueError with the rest of a sentence."""

    name: str
    type: str
    unit: str
    default: str
    text: str
    parse: is_a.Parser

    @property
    def attribute(self) -> str:
        """The name without the prefix, in lower case: how `Settings` is asked for it."""
        return self.name[len(PREFIX) :].lower()

    def value_of(self, text: str) -> Any:
        """Returns the value that `text` means: the default if it is empty, and () or None if that is empty too.

        A default in the home folder of an account that has none is None as well: it must not hinder the other knobs.
        """
        text = text.strip()
        if text:
            return self.parse(text)
        if not self.default:
            return () if self.type.startswith("list") else None
        try:
            return self.parse(self.default)
        except ValueError:
            if not self.default.startswith("~"):
                raise
            return None

    @property
    def accepts(self) -> str:
        """What a value must look like, for an error's remedy."""
        unit = f", a bare number is in {self.unit}" if self.unit else ""
        default = f", default {self.default}" if self.default else ""
        return f"a {self.type}{unit}{default}"


def _knob(name: str, type_: str, unit: str, default: str, parse: is_a.Parser, text: str) -> Knob:
    return Knob(PREFIX + name, type_, unit, default, " ".join(text.split()), parse)


_rate = is_a.quantity(is_a.MBPS, 0.001, 1e6, zero=True)

_ENGINES = ("stream", "wireguard", "openconnect", "proxy", "socks5", "ssh")
_engine = is_a.choice(*_ENGINES)

KNOBS: tuple[Knob, ...] = (
    _knob("ENGINE", "word", "", "stream", is_a.choice(*_ENGINES, "auto"),
          """How traffic leaves: `stream` through gateways of ours, `wireguard` by WireGuard servers, `openconnect` by
          AnyConnect servers, `proxy` through an HTTP proxy that allows CONNECT, `socks5` through a SOCKS server, `ssh`
          through a login node; `auto` takes the first that works."""),
    _knob("ENGINE_ORDER", "list of words", "", "stream, wireguard, openconnect, proxy, socks5, ssh",
          is_a.list_of(_engine),
          "In which order `auto` tries the engines. It passes over those that nothing is configured for."),
    _knob("ENGINE_WORKERS", "whole number", "", "0", is_a.integer(0, 32),
          """How many processes relay flows: 0 is one for each processor core that the pilot may use, at most 4; with
          1 the engine does it itself."""),
    _knob("GATEWAYS", "list of HOST:PORT", "", "", is_a.gateways,
          """The gateways. Flows are spread over all that answer, in proportion to `;weight=NUMBER` behind an entry (1
          where there is none; 0 is for a reserve) and to what each has free; the first of these is the one that is
          shown. IPv6 addresses stand in brackets. Each address of a name is a gateway."""),
    _knob("VIA_PROXY", "HOST:PORT", "", "", is_a.endpoint,
          """Reach the gateways through this HTTP proxy, which has to allow CONNECT to them. The gateway's key is
          checked as without it."""),
    _knob("GATEWAY_PIN", "list of pins", "", "", is_a.list_of(is_a.pin),
          """Accept a gateway whose public key has one of these digests (`pin-sha256:…`, as the gateway writes them
          to `gateway.pin`)."""),
    _knob("GATEWAY_PIN_FILE", "path", "", "", is_a.path,
          "A file with such pins, one a line. It is read again when it changes."),
    _knob("GATEWAY_CA_FILE", "path", "", "", is_a.path,
          """Accept a gateway whose certificate this CA file vouches for, with the gateway's name in it. Used where no
          pin is set."""),
    _knob("TOKEN_FILE", "path", "", "", is_a.path,
          """The file with this pilot's bearer token: of the gateway, an IDTOKEN or a SciToken. It must be readable by
          its owner alone (mode 0600), and is read again when it is renewed."""),
    _knob("CERTIFICATE_FILE", "path", "", "", is_a.path,
          """A client certificate (chain, PEM) to show the gateways; no token is needed then. It is read again when it
          is renewed."""),
    _knob("KEY_FILE", "path", "", "", is_a.path, "The private key of that certificate (mode 0600)."),
    _knob("PROXIES", "list of HOST:PORT", "", "", is_a.list_of(is_a.endpoint),
          "HTTP proxies, for the engine `proxy`. Flows are spread over all that work."),
    _knob("PROXY_CREDENTIALS_FILE", "path", "", "", is_a.path,
          """A file with one line USER:PASSWORD for the HTTP proxies (Basic). It must be readable by its owner alone
          (mode 0600)."""),
    _knob("SOCKS5_SERVERS", "list of HOST:PORT", "", "", is_a.list_of(is_a.endpoint),
          "SOCKS servers, for the engine `socks5`. Flows are spread over all that work."),
    _knob("SOCKS5_CREDENTIALS_FILE", "path", "", "", is_a.path,
          "The same for the SOCKS servers (RFC 1929)."),
    _knob("SSH_HOSTS", "list of [USER@]HOST", "", "", is_a.list_of(is_a.ssh_destination),
          """Login nodes, for the engine `ssh`: host names, aliases of ssh_config, or ssh://USER@HOST:PORT. Flows are
          spread over all that work."""),
    _knob("SSH_JUMPS", "list of [USER@]HOST", "", "", is_a.list_of(is_a.ssh_destination),
          "Hosts that ssh passes on its way, in this order (ProxyJump)."),
    _knob("SSH_CONFIG_FILE", "path", "", "", is_a.path,
          "The configuration of ssh, instead of the user's own."),
    _knob("WIREGUARD_CONFIG_FILES", "list of paths", "", "", is_a.list_of(is_a.path),
          """For the engine `wireguard`: configuration files as wg-quick(8) reads them, one a server, readable by their
          owner alone (mode 0600). Flows are spread over all that work."""),
    _knob("WIREGUARD_GO", "path", "", "", is_a.path,
          "The program wireguard-go, 0.0.20231211 or newer. Default: the one on PATH."),
    _knob("OPENCONNECT_SERVERS", "list of HOST:PORT", "", "", is_a.list_of(is_a.endpoint),
          """AnyConnect servers such as ocserv, for the engine `openconnect`. Flows are spread over all that work. They
          are known by the gateways' pins or CA file."""),
    _knob("OPENCONNECT_CREDENTIALS_FILE", "path", "", "", is_a.path,
          "A file with one line USER:PASSWORD for them. It must be readable by its owner alone (mode 0600)."),
    _knob("OPENCONNECT_CERTIFICATE_FILE", "path", "", "", is_a.path,
          "A client certificate for them (PEM), besides or instead of a password."),
    _knob("OPENCONNECT_KEY_FILE", "path", "", "", is_a.path,
          "Its private key (mode 0600), without a passphrase. Default: it is in the certificate's file."),
    _knob("OPENCONNECT_DTLS", "word", "", "on", is_a.choice("on", "off"),
          """Whether packets travel by DTLS, over UDP, where that gets through, rather than by TLS. With `off`, or where
          UDP is blocked, it is TLS."""),
    _knob("NAME_SERVERS", "list of addresses", "", "", is_a.list_of(is_a.name_server),
          """Name servers that are asked, over TCP, through the engines `proxy`, `socks5` and `ssh`: ADDRESS or
          ADDRESS:PORT. IPv4 or IPv6 is carried where one of that family answers. Through `wireguard` they are asked if
          its configuration names none, through `openconnect` instead of those that the server names."""),
    _knob("ROUTES", "list of routes", "", "", route_rules(_ENGINES),
          """Ways for certain destinations, separated by commas: `NETWORK WAY` or `NETWORK port N[-M] WAY`, where WAY is
          `direct` (from the node itself, past the tunnel), `reject`, `gateway HOST:PORT`, `engine NAME`, or `tunnel`
          for an exception. The longest prefix holds. See engines.md."""),
    _knob("DIRECT_DOMAINS", "list of domains", "", "", is_a.list_of(is_a.domain),
          "Domains of the site's own: names in them are asked of `HTCONDOR_VPN_DIRECT_NAME_SERVERS`, past the tunnel."),
    _knob("DIRECT_NAME_SERVERS", "list of addresses", "", "", is_a.list_of(is_a.name_server),
          "The site's own name servers, which are asked from the node itself about those domains, and no others."),
    _knob("RUN_DIR", "path", "", "", is_a.path,
          """The run folder: state, log, broker's socket. Default: a new folder `htcondor-vpn-…` under $TMPDIR, or
          /tmp, which is removed at the end. The path must be short: a socket is in it."""),
    _knob("CONNECT_TIMEOUT", "time", "s", "30", is_a.quantity(is_a.SECONDS, 1, 3600),
          "How long a start may try until a gateway answers."),
    _knob("WAIT_AFTER_COMMAND", "time", "s", "0", is_a.quantity(is_a.SECONDS, 0, 3600),
          """How long what COMMAND has left running may take to end by itself, before it is killed. A signal cuts that
          short. htvpn-launch sets it, since a glidein does not wait for its condor_master."""),
    _knob("PROBE_INTERVAL", "time", "s", "3", is_a.quantity(is_a.SECONDS, 0.1, 300),
          "How often the tunnel is probed."),
    _knob("PROBE_TIMEOUT", "time", "s", "4", is_a.quantity(is_a.SECONDS, 0.1, 300),
          """How long a probe may take before the tunnel counts as down. A loss without a word is noticed after at most
          this and the interval together, and the slot says so a second later."""),
    _knob("HOLD_CONNECTS", "word", "", "auto", is_a.choice("auto", "on", "off"),
          """Whether an application's `connect` waits until the far side has answered, and fails if that refuses. With
          `auto` it does where the kernel can hold packets for us (NFQUEUE); with `on` there is no start where it
          cannot; with `off` each connect succeeds at once, and one that is refused is reset then."""),
    _knob("UP_MBPS", "rate", "Mbit/s", "0", _rate,
          "The tunnel's bandwidth towards the gateway as advertised; 0 measures it at start."),
    _knob("DOWN_MBPS", "rate", "Mbit/s", "0", _rate,
          "The tunnel's bandwidth towards the node as advertised; 0 measures it at start."),
    _knob("LOG_LEVEL", "word", "", "info", is_a.choice("debug", "info", "warning", "error"),
          "How much is logged: debug, info, warning or error."),
    _knob("JOB_UP_MBPS", "rate", "Mbit/s", "0", _rate,
          "The rate at which a job may send, unless it asks for another; 0 is no limit."),
    _knob("JOB_DOWN_MBPS", "rate", "Mbit/s", "0", _rate,
          "The rate at which a job may receive, unless it asks for another; 0 is no limit."),
    _knob("JOBS_UP_MBPS", "rate", "Mbit/s", "0", _rate,
          """The rate at which all jobs together may send. Each has a part of it in any case, by its accounting group
          and its cpus, and others use what it leaves. 0 is `UP_MBPS`; if that is 0, too, nothing is divided."""),
    _knob("JOBS_DOWN_MBPS", "rate", "Mbit/s", "0", _rate,
          "The rate at which all jobs together may receive, likewise. 0 is `DOWN_MBPS`."),
    _knob("JOB_MAX_MBPS", "rate", "Mbit/s", "1000", is_a.quantity(is_a.MBPS, 0.001, 1e6),
          "The highest rate that a job may ask for with `+VpnBandwidthMbps`; a job that asks for more is held."),
    _knob("JOB_POLICY_FILE", "path", "", "", is_a.path,
          """The policy of job networks: which job gets which network, rates and destinations, by rules of ClassAd
          expressions (docs/job-policy.md). Where no rule matches, and without a file, the knobs above decide."""),
    _knob("JOB_LEDGER_DIR", "path", "", "", is_a.path,
          """Where the ledger of this pilot's jobs is kept: in a file of its own in this folder, which may lie on a
          shared file system and serve many pilots; without it, in the run folder."""),
    _knob("JOB_WRAPPER", "path", "", "", is_a.path,
          """The site's own USER_JOB_WRAPPER, for ours has taken its place: it is run inside the job's network, with the
          job's command as its arguments."""),
    _knob("EXECUTION_POINT_DIR", "path", "", "/run/htcondor-vpn", is_a.path,
          """Execution points with root: the folder of `htcondor-vpn execution-point`, with its socket and what HTCondor
          runs. It must be on a file system in memory, as /run is, for what it says holds until the next boot."""),
    _knob("EXECUTION_POINT_ALLOW", "list of networks", "", "", is_a.list_of(is_a.network),
          """Execution points with root: networks that jobs may reach by the host's network although they are private
          (RFC 1918, RFC 6598, RFC 4193). The host itself, loopback and link-local destinations are always refused."""),
    _knob("EXECUTION_POINT_DENY", "list of NETWORK [port N[-M]]", "", "", denied_destinations,
          "Execution points with root: destinations that no job may reach, separated by commas."),
    _knob("EXECUTION_POINT_JOB_CONNECTIONS", "whole number", "", "4096", is_a.integer(0, 1_000_000),
          """Execution points with root: how many connections by each version of IP a job may have at a time in the
          host's memory of them (nf_conntrack), which all jobs and the host share; it is refused more. 0 is any."""),
    _knob("EXECUTION_POINT_TUNNEL", "path", "", "", is_a.path,
          """Execution points with root: the run folder of a `htcondor-vpn run` on this host. Jobs go through its tunnel
          unless their policy says `network = host`, or `none`."""),
    _knob("GATEWAY_KIND", "word", "", "stream", is_a.choice("stream", "wireguard", "ocserv"),
          """Gateway: what `htcondor-vpn gateway` runs: `stream`, a gateway of ours for the engine `stream`;
          `wireguard`, a WireGuard server for the engine of that name, and for every other client of WireGuard;
          `ocserv`, an AnyConnect server for the engine `openconnect` and other clients of that protocol."""),
    _knob("GATEWAY_WIREGUARD_ENDPOINT", "HOST:PORT", "", "", is_a.endpoint,
          """Gateway: where pilots reach the WireGuard server, as it stands in the files that are made for them. It
          listens at that UDP port of all its addresses. Default: the host's name, port 51820."""),
    _knob("GATEWAY_LISTEN", "list of HOST:PORT", "", "[::]:8443, 0.0.0.0:8443", is_a.list_of(is_a.listening),
          "Gateway: where it listens."),
    _knob("GATEWAY_DIR", "path", "", "~/.htcondor-vpn-gateway", is_a.path,
          "Gateway: the folder (0700) with its key, certificate, `gateway.pin` and the pilots' tokens."),
    _knob("GATEWAY_ALLOW", "list of networks", "", "", is_a.list_of(is_a.network),
          """Gateway: networks that pilots may reach although they are private (RFC 1918, RFC 6598, RFC 4193) or hold
          addresses of the gateway itself. Loopback and link-local destinations are always refused."""),
    _knob("GATEWAY_DENY", "list of NETWORK [port N[-M]]", "", "", denied_destinations,
          """Gateway: destinations that pilots may not reach, separated by commas. A denied network may have holes, of
          networks in GATEWAY_ALLOW that are as narrow or narrower; denied ports have none."""),
    _knob("GATEWAY_NAMES", "list of names", "", "", is_a.list_of(is_a.host),
          """Gateway: the host names and addresses in the certificate that it makes for itself at its first start.
          Default: the host's name, and the addresses where it listens."""),
    _knob("GATEWAY_CERTIFICATE_FILE", "path", "", "", is_a.path,
          "Gateway: a certificate (chain) of your own in PEM form, instead of the self-made one."),
    _knob("GATEWAY_KEY_FILE", "path", "", "", is_a.path,
          "Gateway: the private key of that certificate (mode 0600)."),
    _knob("GATEWAY_CLIENT_CA_FILE", "path", "", "", is_a.path,
          "Gateway: admit pilots with a client certificate that a CA in this PEM file vouches for."),
    _knob("GATEWAY_CLIENT_CRL_FILE", "path", "", "", is_a.path,
          """Gateway: the revocation lists of all those CAs (PEM), read again when the file changes. A certificate is
          refused whose CA has no list here, or one that is out of date."""),
    _knob("GATEWAY_IDTOKEN_KEYS", "path", "", "", is_a.path,
          """Gateway: admit pilots with an HTCondor IDTOKEN signed by a key in this folder; each file (mode 0600) is
          named as the key, as in HTCondor's SEC_PASSWORD_DIRECTORY."""),
    _knob("GATEWAY_IDTOKEN_ISSUER", "word", "", "", is_a.word,
          "Gateway: the TRUST_DOMAIN of the pool whose IDTOKENs these are."),
    _knob("GATEWAY_IDTOKEN_SCOPES", "list of words", "", "condor:/ADVERTISE_STARTD", is_a.list_of(is_a.word),
          """Gateway: an IDTOKEN that is limited to some authorizations must have one of these; one without limits has
          all."""),
    _knob("GATEWAY_SCITOKEN_ISSUERS", "list of URLs", "", "", is_a.list_of(is_a.issuer),
          """Gateway: admit pilots with a SciToken of one of these issuers. Their public keys are fetched from them, or
          read from a JSON Web Key Set where one is named: `URL=FILE`."""),
    _knob("GATEWAY_SCITOKEN_AUDIENCES", "list of words", "", "", is_a.list_of(is_a.word),
          "Gateway: a SciToken must be meant for one of these (its claim `aud`), or for any."),
    _knob("GATEWAY_SCITOKEN_SCOPES", "list of words", "", "", is_a.list_of(is_a.word),
          "Gateway: a SciToken must have one of these scopes, such as `compute.create`; if empty, none is asked for."),
    _knob("GATEWAY_PILOTS", "list of patterns", "", "*", is_a.list_of(is_a.word),
          """Gateway: which pilots are admitted with a certificate, an IDTOKEN or a SciToken, by the names in the log:
          `certificate:*.site.example`, `idtoken:pilot@*`. Tokens of the gateway's own are always."""),
    _knob("GATEWAY_CONNECTIONS", "whole number", "", "8000", is_a.integer(1, 1_000_000),
          """Gateway: how many connections it serves at once; it turns away what comes beyond. Each needs two file
          descriptors."""),
    _knob("GATEWAY_CONNECTIONS_PER_TOKEN", "whole number", "", "2000", is_a.integer(1, 1_000_000),
          "Gateway: how many connections one token may hold at once."),
    _knob("GATEWAY_UP_MBPS", "rate", "Mbit/s", "0", _rate,
          "Gateway: what all pilots together may send, shared fairly among those that send; 0 is no limit."),
    _knob("GATEWAY_DOWN_MBPS", "rate", "Mbit/s", "0", _rate, "Gateway: the same for what they receive."),
    _knob("GATEWAY_PILOT_UP_MBPS", "rate", "Mbit/s", "0", _rate,
          "Gateway: what one pilot may send, shared fairly among its flows; 0 is no limit."),
    _knob("GATEWAY_PILOT_DOWN_MBPS", "rate", "Mbit/s", "0", _rate, "Gateway: the same for what it receives."),
    _knob("GATEWAY_PILOT_RATES", "list of PILOT=UP/DOWN", "", "", is_a.list_of(is_a.pilot_rate),
          """Gateway: other limits, Mbit/s, for pilots by their names as they stand in the log: NAME=UP/DOWN or
          NAME=BOTH, where 0 is no limit. A name may be a pattern (`cms-*`); the first that fits counts."""),
    _knob("GATEWAY_WORKERS", "whole number", "", "0", is_a.integer(0, 32),
          "Gateway: how many processes serve connections; 0 is one for each processor core that it may use."),
    _knob("GATEWAY_UNAUTHENTICATED_PER_ADDRESS", "whole number", "", "1000", is_a.integer(1, 1_000_000),
          """Gateway: how many connections of one source address (IPv6: of one /64) may be there that have not
          authenticated yet; for every ten that have, an address counts for one more."""),
    _knob("GATEWAY_HANDSHAKES_PER_SECOND", "number", "", "100", is_a.quantity({"": 1.0}, 1, 1e6),
          """Gateway: how many TLS handshakes a second one source address may begin without authenticating afterwards,
          likewise; the others wait."""),
    _knob("GATEWAY_LEDGER_KEEP", "time", "s", "90d", is_a.quantity(is_a.SECONDS, 60, 36500 * 86400, zero=True),
          "Gateway: how long the ledger keeps each flow; sums by pilot are kept for ever. 0 is no ledger."),
    _knob("GATEWAY_LEDGER_FLOWS", "whole number", "", "1000000", is_a.integer(0, 1_000_000_000),
          """Gateway: how many flows the ledger keeps at most (a million are about 150 MB). 0 is no ledger."""),
    _knob("GATEWAY_GRACE_PERIOD", "time", "s", "30", is_a.quantity(is_a.SECONDS, 0, 86400),
          "Gateway: how long flows may go on after it was told to end."),
)  # fmt: skip

BY_NAME = {knob.name: knob for knob in KNOBS}
