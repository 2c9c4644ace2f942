"""What can go wrong before COMMAND runs: every error has a cause, a remedy and an exit code of its own.

The codes follow sysexits.h where it has a word for the case. `htcondor-vpn run` returns COMMAND's own code once
COMMAND has started, and 126 or 127 where it cannot be started, as env(1) and the shells do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator


class VpnError(Exception):
    """An error that a user can do something about.

    `cause` says what failed and why; `remedy` what the reader can do; neither ends in a full stop.
    """

    exit_code = 70  # EX_SOFTWARE

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


class UsageError(VpnError):
    """The command line does not make sense."""

    exit_code = 64  # EX_USAGE


class ConfigUnreadable(VpnError):
    """A configuration file cannot be read, or a line of it not understood."""

    exit_code = 66  # EX_NOINPUT


class AccountUnusable(VpnError):
    """Root has no ordinary account to become, or that account cannot read what it needs; or only root can do it."""

    exit_code = 81


class GatewayNameError(VpnError):
    """No gateway's name resolves."""

    exit_code = 68  # EX_NOHOST


class GatewayUnreachable(VpnError):
    """No gateway answers."""

    exit_code = 69  # EX_UNAVAILABLE


class NamespacesUnavailable(VpnError):
    """The kernel refuses user, network or mount namespaces to ordinary users."""

    exit_code = 71  # EX_OSERR


class ProgramMissing(VpnError):
    """A program that is needed is not on this machine."""

    exit_code = 72  # EX_OSFILE


class RunFolderError(VpnError):
    """The run folder cannot be made or written: no such place, no permission, or a full disk."""

    exit_code = 74  # EX_IOERR

    @classmethod
    def of(cls, what: str, error: OSError, instead: str) -> RunFolderError:
        """`what` cannot be written; `instead` is what sets another place."""
        denied = isinstance(error, PermissionError)
        remedy = "let this account write there" if denied else "free some space there"
        return cls(f"{what} cannot be written: {error.strerror}", f"{remedy}, or set {instead} to another place")


class GatewayUntrusted(VpnError):
    """The gateway's certificate is not the one we were told to trust. No credential has been sent."""

    exit_code = 76  # EX_PROTOCOL


class CatcherUnavailable(VpnError):
    """The kernel cannot hand connections to the engine: it lacks nftables, or the tproxy of it."""

    exit_code = 82


class JobCountingUnavailable(VpnError):
    """The kernel cannot count jobs' traffic, or cannot keep jobs to their destinations: it lacks parts of nftables."""

    exit_code = 93


class LedgerUnreadable(VpnError):
    """A ledger of jobs, or what is known of the running ones, cannot be read."""

    exit_code = 94


class JobNotFound(VpnError):
    """No job in the ledgers has such a name."""

    exit_code = 95


class TokenRefused(VpnError):
    """The gateway does not accept our token."""

    exit_code = 77  # EX_NOPERM


class ProxyRefused(VpnError):
    """A site's proxy does not accept our name and password, or wants some."""

    exit_code = 84


class SshRefused(VpnError):
    """ssh cannot log in: the login node's key is not the known one, or ours is not accepted."""

    exit_code = 85


class LoginRefused(VpnError):
    """A VPN's server does not accept our name and password, or our certificate."""

    exit_code = 86


class ConfigError(VpnError):
    """A knob's value is wrong: unknown name, wrong unit, out of range, or two knobs that contradict."""

    exit_code = 78  # EX_CONFIG


class PolicyError(VpnError):
    """The policy of job networks is wrong: a line, a key, an expression, a destination."""

    exit_code = 91


class TokenUnusable(VpnError):
    """A file with a secret (token, private key, a proxy's password) is missing, empty, or readable by others."""

    exit_code = 79


class TokenNameError(VpnError):
    """Gateway: the name of a token or of a denied pilot is malformed, taken, or that of none."""

    exit_code = 67  # EX_NOUSER


class GatewayFolderError(VpnError):
    """Gateway: its folder, key, certificate or token database cannot be made or used."""

    exit_code = 73  # EX_CANTCREAT


class ListenError(VpnError):
    """Gateway: it cannot listen where it should."""

    exit_code = 80


class GatewayNotRunning(VpnError):
    """Gateway: none runs that could be asked, or told to do something."""

    exit_code = 90


class NodeUnsuitable(VpnError):
    """`htcondor-vpn doctor`: the default way does not work on this node."""

    exit_code = 92


class LimitReached(VpnError):
    """A limit of this account leaves no room for the pilot's processes or file descriptors."""

    exit_code = 83

    @classmethod
    def of(cls, error: OSError) -> LimitReached | None:
        """Makes it of what the kernel said, or returns None if that was something else."""
        if error.errno not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            return None
        return cls(f"the pilot's processes cannot be made: {error.strerror}", "raise the limits (ulimit -u, -n, -v)")


class CommandNotExecutable(VpnError):
    """COMMAND exists and cannot be executed."""

    exit_code = 126


class CommandNotFound(VpnError):
    """COMMAND does not exist."""

    exit_code = 127


def by_name(name: str, cause: str, remedy: str) -> VpnError:
    """Makes the error that another process of ours reported by its class' name; a plain `VpnError` if unknown."""
    return {kind.__name__: kind for kind in _kinds(VpnError)}.get(name, VpnError)(cause, remedy)


def _kinds(kind: type[VpnError]) -> Iterator[type[VpnError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)
