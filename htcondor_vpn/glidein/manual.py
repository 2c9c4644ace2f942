"""A glidein by hand: what GlideinWMS' `manual_glidein_startup` wrote, checked and put into a batch system's script.

That tool asks the WMS collector and writes a shell script of one command, `glidein_startup.sh` with its arguments. It
is for a node with a network; here the same command runs in the tunnel (htvpn-launch).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import ConfigUnreadable, ProgramMissing, UsageError
from htcondor_vpn.glidein.batch_script import BatchJob
from htcondor_vpn.glidein.credentials import check_jwt, check_secret
from htcondor_vpn.settings import Settings
from htcondor_vpn.shipped import GLIDEIN_SCRIPTS, shipped

#: What glidein_startup.sh cannot do without.
_NEEDED = "-factory", "-name", "-entry", "-web", "-descript", "-sign", "-clientname"

#: Where a node has room of its own; any other folder is the site's business.
_WORK_FOLDERS = "TMPDIR", "Condor", "OSG", "."

#: Credentials that say themselves how long they are valid.
_TOKENS = ".idtoken", ".scitoken", ".jwt"


@dataclass(frozen=True)
class ManualGlidein:
    """What is needed for one; every path is absolute. `warnings` are for whoever started this."""

    startup: Path
    arguments: tuple[str, ...]
    bundle: Path
    launcher: Path
    config: Path
    token: Path | None
    credentials: tuple[Path, ...]
    warnings: tuple[str, ...]

    def job(self, *, time_seconds: int, lead_seconds: int, cpus: int, directives: Sequence[str] = ()) -> BatchJob:
        """The batch job that runs it."""
        token = () if self.token is None else (self.token,)
        names = {"HTVPN_BUNDLE": self.bundle.name, "HTVPN_CONFIG": self.config.name}
        if self.token is not None:
            names |= {"HTVPN_TOKEN_FILE": self.token.name, "HTVPN_DELETE_TOKEN": "1"}
        return BatchJob(
            name="glidein",
            argv=(f"./{self.launcher.name}", f"./{self.startup.name}", *_in_own_folder(self.arguments)),
            time_seconds=time_seconds,
            lead_seconds=lead_seconds,
            cpus=cpus,
            secrets=(*token, *self.credentials),
            files=(self.startup, self.bundle, self.launcher, self.config),
            environment=names,
            directives=directives,
        )


def check(
    command_file: Path, bundle: Path, config: Path, token: Path | None, credentials: Sequence[Path], seconds: float
) -> ManualGlidein:
    """Looks at everything that the batch job will need for `seconds`, as nobody is there to look when it runs.

    Raises `UsageError`, `ConfigUnreadable`, `ConfigError`, `TokenUnusable`, `ProgramMissing`.
    """
    startup, arguments = read_command(command_file)
    if not bundle.is_file():
        raise ProgramMissing(f"there is no bundle {bundle}", "htcondor-vpn bundle -o FILE")
    launcher = shipped(GLIDEIN_SCRIPTS) / "htvpn-launch"
    settings = Settings.load(config_files([config], os.environ).files, {}, {})
    for path in (settings.gateway_pin_file, settings.gateway_ca_file):
        if path is not None and not path.is_file():
            raise ConfigUnreadable(f"{config}: there is no file {path}", "name it by its whole path")
    if token is not None:
        check_secret(token)
    elif settings.token_file is not None:
        check_secret(settings.token_file)
    for credential in credentials:
        if credential.suffix in _TOKENS:
            check_jwt(credential, seconds)
        else:
            check_secret(credential)
    options = dict(zip(arguments[::2], arguments[1::2]))
    warnings = []
    if options.get("-dir") not in _WORK_FOLDERS:
        warnings.append(f"the glidein's folder is {options.get('-dir', 'not named')}: --override-args '-dir TMPDIR'")
    if options.get("-proxy"):
        warnings.append(f"it downloads by the proxy {options['-proxy']}, which has to be reachable through the tunnel")
    if options.get("-v") != "fast":
        warnings.append("where it fails it holds the node for 20 minutes: --override-args '-v fast'")
    if not credentials:
        warnings.append("there is no credential for the pool: --credential FILE (credential_….idtoken)")
    return ManualGlidein(
        startup, arguments, bundle.absolute(), launcher, config.absolute(), None if token is None else token.absolute(),
        tuple(credential.absolute() for credential in credentials), tuple(warnings),
    )  # fmt: skip


def _in_own_folder(arguments: Sequence[str]) -> Iterator[str]:
    """`-dir TMPDIR` becomes the job's own folder, which lies there.

    A glidein_startup.sh that is told to end before HTCondor runs leaves its folder, with copies of the credentials; the
    batch script does not.
    """
    for option, word in zip(("", *arguments), arguments):
        yield "." if (option, word) == ("-dir", "TMPDIR") else word


def read_command(file: Path) -> tuple[Path, tuple[str, ...]]:
    """Returns the whole path of glidein_startup.sh, and its arguments; raises `ConfigUnreadable` and `UsageError`."""
    remedy = "manual_glidein_startup --cmd-out-file FILE writes one"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigUnreadable(f"{file} cannot be read: {getattr(error, 'strerror', error)}", remedy) from error
    commands = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if len(commands) != 1:
        raise UsageError(f"{file} has {len(commands)} commands, and not the one of a glidein", remedy)
    try:
        words = shlex.split(commands[0])
    except ValueError as error:
        raise UsageError(f"{file}: {error}", remedy) from error
    startup = Path(words[0]) if Path(words[0]).is_absolute() else file.absolute().parent / words[0]
    if not startup.is_file():
        raise UsageError(f"there is no {startup}", "manual_glidein_startup --glidein-startup PATH names it")
    missing = [option for option in _NEEDED if option not in words[1:]]
    if missing:
        raise UsageError(f"{file} has no {', '.join(missing)}: the command is not whole", remedy)
    return startup.resolve(), tuple(words[1:])
