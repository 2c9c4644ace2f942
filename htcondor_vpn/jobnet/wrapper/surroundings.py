"""What HTCondor has left for the job: variables, its ad, the way to the starter."""

from __future__ import annotations

import posix

from htcondor_vpn.jobnet.wrapper.failure import EX_TEMPFAIL, CannotRun
from htcondor_vpn.jobnet.wrapper.text import decoded

#: Set by what HTCondor runs in our place where a glidein has a job wrapper of its own: the path of that one.
CHAIN = "_HTCONDOR_VPN_CHAIN"

#: By which the prepare hook's answer renames variables that would act on this program (confinement.py).
LATER = "_HTCONDOR_VPN_LATER_"

#: The variables that we were started with, and that the job gets.
environ = {decoded(name): decoded(value) for name, value in posix.environ.items()}


def chirp_config() -> str:
    """What the starter wrote for condor_chirp, on one line, or an empty text."""
    try:
        with open(environ.get("_CONDOR_CHIRP_CONFIG", "")) as file:
            return " ".join(file.read(4096).split())
    except OSError:
        return ""  # the job cannot chirp then, with or without its own network


def requests_of_job() -> str:
    """The lines of the job ad by which it may ask for something, and its name.

    Raises `CannotRun` when the ad cannot be read.
    """
    path = environ.get("_CONDOR_JOB_AD")
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return decoded(b"".join(line for line in file if line.lower().startswith((b"vpn", b"globaljobid"))))
    except OSError as error:
        raise CannotRun(EX_TEMPFAIL, f"the job ad cannot be read: {error}") from error


def chained(answer: dict[str, str]) -> list[str]:
    """The site's own job wrapper, if there is one: the one that the pilot's settings name, or else a glidein's.

    The other way round a job could have the first one left out, by a variable of its own.
    """
    of_glidein = environ.pop(CHAIN, None)
    return list(filter(None, [answer.get("chain") or of_glidein]))


def job_environment() -> None:
    """Gives the job the variables that were kept from acting on this program."""
    for name in [name for name in environ if name.startswith(LATER)]:
        environ[name[len(LATER) :]] = environ.pop(name)
