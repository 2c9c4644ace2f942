"""The settings in force: the knobs' values from files, the environment and the command line.

The syntax is HTCondor's own (`config_file.py`), so that a knob may stand in a condor_config file or in one of its own.
A value from the environment (`_CONDOR_HTCONDOR_VPN_…`, HTCondor's convention) wins over every file, one from the
command line over both; later files and lines win over earlier ones. An empty value means the default, as in HTCondor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from htcondor_vpn.config_file import Macros, Origin, printable
from htcondor_vpn.errors import ConfigError, VpnError
from htcondor_vpn.knobs import BY_NAME, KNOBS, PREFIX

ENVIRONMENT_PREFIX = "_CONDOR_"

#: HTCondor itself reads these (STARTER_JOB_HOOK_KEYWORD = HTCONDOR_VPN); they are none of our knobs.
HOOKS_PREFIX = "HTCONDOR_VPN_HOOK_"


@dataclass(frozen=True)
class Settings:
    """The values in force. An attribute is a knob's name without the prefix, in lower case."""

    values: Mapping[str, Any]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    #: As they were written, references replaced; only of knobs that were set.
    texts: Mapping[str, str] = field(default_factory=dict)
    #: What was passed over or looks wrong without being an error.
    warnings: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[PREFIX + name.upper()]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def load(
        cls,
        files: Iterable[Path] = (),
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> Settings:
        """Reads `files` in their order, then `environ`, then `overrides` (knob names to text, the command line's).

        Raises `ConfigUnreadable` for a file that cannot be read and `ConfigError` for the first bad knob.
        """
        settings, problems = examine(files, environ, overrides)
        if problems:
            raise problems[0]
        return settings


def examine(
    files: Iterable[Path] = (),
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> tuple[Settings, list[VpnError]]:
    """As `Settings.load`, but returns every problem; a knob with a problem has its default in the settings."""
    macros = Macros(dict(environ or {}))
    problems: list[VpnError] = []
    for path in files:
        try:
            macros.read(path, problems)
        except VpnError as error:
            problems.append(error)
    for name, text in (environ or {}).items():
        if name.upper().startswith(ENVIRONMENT_PREFIX + PREFIX):
            macros.assign(name[len(ENVIRONMENT_PREFIX) :], text, Origin(f"environment variable {printable(name)}"))
    for name, text in (overrides or {}).items():
        if not name.startswith(PREFIX):
            problems.append(ConfigError(f"command line: {name} is not a knob", f"they begin with {PREFIX}"))
        macros.assign(name, text, Origin("command line"), literal=True)
    problems += _misplaced(macros)
    values = {knob.name: knob.value_of("") for knob in KNOBS}
    origins, texts = {}, {}
    for name, assignment in macros.table.items():
        if not name.startswith(PREFIX) or name.startswith(HOOKS_PREFIX):
            continue
        try:
            texts[name], values[name] = _value(macros, name)
            origins[name] = assignment.origin
        except ConfigError as error:
            problems.append(error)
    settings = Settings(values, origins, texts)
    if not problems:
        problems += _contradictions(settings)
    return replace(settings, warnings=(*macros.warnings, *_doubts(settings))), problems


def _value(macros: Macros, name: str) -> tuple[str, Any]:
    """Returns a knob's text and value; raises `ConfigError`, which never shows the text of what is no knob."""
    origin = macros.table[name].origin
    knob = BY_NAME.get(name)
    if knob is None:
        near = get_close_matches(name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in BY_NAME], 1)
        raise ConfigError(
            f"{origin}: {printable(name)} is not a knob",
            f"did you mean {PREFIX}{near[0]}?" if near else "`htcondor-vpn config docs` lists them",
        )
    text = macros.value(name).strip()
    try:
        return text, knob.value_of(text)
    except ValueError as error:
        cause = f"{origin}: {name} = {printable(text, 200)}: the value {error}"
        raise ConfigError(cause, f"it is {knob.accepts}") from None


def _misplaced(macros: Macros) -> Iterator[ConfigError]:
    """Our knobs where it is not certain that they count: better no start than a start without them."""
    for assignment, reason in macros.doubtful:
        if assignment.name.startswith(PREFIX) and not assignment.name.startswith(HOOKS_PREFIX):
            yield ConfigError(f"{assignment.origin}: {assignment.name} cannot be used here", reason)
    for assignment in macros.table.values():
        subsystem, dot, name = assignment.name.rpartition(".")
        if dot and name.startswith(PREFIX) and not name.startswith(HOOKS_PREFIX):
            yield ConfigError(f"{assignment.origin}: {assignment.name} is not a knob", f"write {name}")


def _contradictions(settings: Settings) -> Iterator[ConfigError]:
    """Knobs that are right each for itself, but not together."""
    for name in ("JOB_UP_MBPS", "JOB_DOWN_MBPS"):
        rate = settings.values[PREFIX + name]
        if rate > settings.job_max_mbps:
            yield ConfigError(
                f"{_named(settings, name)} is more than {_named(settings, 'JOB_MAX_MBPS')}",
                "raise the one or lower the other",
            )
    for whose in (PREFIX, f"{PREFIX}GATEWAY_"):
        certificate, key = settings.values[f"{whose}CERTIFICATE_FILE"], settings.values[f"{whose}KEY_FILE"]
        if (certificate is None) != (key is None):
            given, other = ("CERTIFICATE", "KEY") if key is None else ("KEY", "CERTIFICATE")
            name = f"{whose}{given}_FILE"
            options = "" if whose == PREFIX else " (--cert and --key)"
            yield ConfigError(
                f"{settings.origins[name]}: {name} is set, but {whose}{other}_FILE is not",
                f"a certificate and its key go together{options}",
            )
    for first, second in (("IDTOKEN_KEYS", "IDTOKEN_ISSUER"), ("SCITOKEN_ISSUERS", "SCITOKEN_AUDIENCES")):
        if bool(settings.values[f"{PREFIX}GATEWAY_{first}"]) != bool(settings.values[f"{PREFIX}GATEWAY_{second}"]):
            yield ConfigError(
                f"of {PREFIX}GATEWAY_{first} and {PREFIX}GATEWAY_{second} only one is set",
                "a token is known by both together",
            )
    if settings.gateway_client_crl_file and not settings.gateway_client_ca_file:
        yield ConfigError(
            f"{PREFIX}GATEWAY_CLIENT_CRL_FILE is set, but {PREFIX}GATEWAY_CLIENT_CA_FILE is not",
            "a revocation list goes with its CA",
        )
    known = settings.gateway_pin or settings.gateway_pin_file or settings.gateway_ca_file
    by_gateway = [f"{PREFIX}ROUTES"] if any(rule.gateway for rule in settings.routes) else []
    servers = [name for name in ("GATEWAYS", "OPENCONNECT_SERVERS") if settings.values[PREFIX + name]]
    for named in ([_named(settings, name) for name in servers] or by_gateway) if not known else []:
        yield ConfigError(
            f"{named} says where the gateways are, but nothing says how to know them",
            "set HTCONDOR_VPN_GATEWAY_PIN, HTCONDOR_VPN_GATEWAY_PIN_FILE or HTCONDOR_VPN_GATEWAY_CA_FILE "
            "(--pin, --pin-file or --ca-file)",
        )
    if bool(settings.direct_domains) != bool(settings.direct_name_servers):
        given, other = ("DOMAINS", "NAME_SERVERS") if settings.direct_domains else ("NAME_SERVERS", "DOMAINS")
        name = f"{PREFIX}DIRECT_{given}"
        yield ConfigError(
            f"{settings.origins[name]}: {name} is set, but {PREFIX}DIRECT_{other} is not",
            "domains and the name servers that know them go together",
        )


#: A slot whose tunnel is lost says so within 10 s; the rest is for the advertiser and the collector.
NOTICED_SECONDS = 9.0


def _doubts(settings: Settings) -> Iterator[str]:
    if settings.gateway_ca_file and (settings.gateway_pin or settings.gateway_pin_file):
        origin = settings.origins[f"{PREFIX}GATEWAY_CA_FILE"]
        yield f"{origin}: {PREFIX}GATEWAY_CA_FILE is not used, since a pin is set: gateways are known by their keys"
    if settings.probe_interval + settings.probe_timeout > NOTICED_SECONDS:
        yield (
            f"{_named(settings, 'PROBE_INTERVAL')} and {_named(settings, 'PROBE_TIMEOUT')}: a slot may take longer "
            "than 10 s to say that its tunnel is lost"
        )


def _named(settings: Settings, short: str) -> str:
    """`FILE:LINE: NAME = value`, or `NAME = value (the default)`."""
    name = PREFIX + short
    value = settings.values[name]
    shown = ", ".join(f"{each[0]}:{each[1]}" for each in value) if isinstance(value, tuple) else f"{value:g}"
    origin = settings.origins.get(name)
    return f"{origin}: {name} = {shown}" if origin else f"{name} = {shown} (the default)"
