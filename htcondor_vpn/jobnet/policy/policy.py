"""What decides for jobs: the knobs alone, or a policy file besides; and the making of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from htcondor_vpn.errors import PolicyError, ProgramMissing, VpnError
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.knob_policy import KnobPolicy
from htcondor_vpn.jobnet.policy.source import Source, read_source
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.jobnet.policy.file_policy import FilePolicy

KNOB = "HTCONDOR_VPN_JOB_POLICY_FILE"


class Policy(Protocol):
    """Decides for jobs, once it is opened and watched. `close` it."""

    #: Whether a decision may be made of the ad that a wrapper reads: a job can bring a file in its place.
    trusts_sandbox: bool

    async def decide(self, job_ad: str, machine_ad: str) -> Decision:
        """Decides for a job, of two ads in HTCondor's old syntax; raises `Refusal`."""

    def restored(self, record: dict[str, Any]) -> Decision:
        """The decision that `records.record_of` made a record of; raises LookupError, TypeError or ValueError."""

    def open(self) -> None:
        """Makes the process that it needs, if it needs one, while this one has no threads; raises OSError."""

    def watch(self, on_death: Callable[[], None]) -> None:
        """Begins in the running loop; `on_death` is called when it cannot decide any more."""

    def close(self) -> None:
        """Ends what belongs to it."""


def read_policy(settings: Settings) -> Source | None:
    """Reads the policy file, if the settings name one, as far as this takes no ClassAd library.

    Raises `ConfigUnreadable`, and `PolicyError` for the first mistake. It is read once for the life of a pilot.
    """
    path: Path | None = settings.job_policy_file
    if path is None:
        return None
    problems: list[PolicyError] = []
    source = read_source(path, problems)
    if problems:
        raise problems[0]
    return source


def make_policy(source: Source | None, settings: Settings) -> Policy:
    """Makes what decides; raises as `compiled_policy`."""
    if source is None:
        return KnobPolicy(settings)
    policy = compiled_policy(source, settings)
    from htcondor_vpn.jobnet.policy.judge import Judge

    return Judge(policy)


def compiled_policy(source: Source, settings: Settings) -> FilePolicy:
    """Compiles a policy, to be asked in this process.

    Raises `PolicyError` for the first mistake, `ProgramMissing` where there is no ClassAd library.
    """
    problems: list[PolicyError] = []
    try:
        from htcondor_vpn.jobnet.policy.file_policy import FilePolicy
        from htcondor_vpn.jobnet.policy.rules import compile_rules
    except ImportError as error:
        raise _library_missing(error) from error
    rules = compile_rules(source, problems)
    if problems:
        raise problems[0]
    return FilePolicy(rules, settings)


def examine_policy(path: Path) -> list[VpnError]:
    """Returns everything that is wrong with a policy file."""
    problems: list[PolicyError] = []
    try:
        source = read_source(path, problems)
        from htcondor_vpn.jobnet.policy.rules import compile_rules
    except VpnError as error:
        return [error]
    except ImportError as error:
        return [*problems, _library_missing(error)]
    compile_rules(source, problems)
    return list(problems)


def _library_missing(error: ImportError) -> ProgramMissing:
    return ProgramMissing(
        f"{KNOB} is set, and its expressions need HTCondor's Python bindings: {error}",
        "pip install 'htcondor-vpn[condor]' (for a bundle: --helpers …,htcondor), or do without a policy file",
    )
