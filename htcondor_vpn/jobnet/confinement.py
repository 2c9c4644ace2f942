"""What of a job HTCondor would run outside of its network: refused here, or put off until the job is inside.

The starter runs the wrapper with the job's environment, and some of a job's programs without the wrapper. So the
prepare hook refuses the latter, and has the starter rename those variables by which the dynamic loader would run the
job's own code in the wrapper (ld.so(8)); the wrapper gives them back to the job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from htcondor_vpn.condor.chirp import literal
from htcondor_vpn.condor.job_ad import Ad, parse_ad
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.jobnet.wrapper.surroundings import LATER

#: Job attributes that name programs which the starter runs beside the job, in its own network.
_OUTSIDE = ("PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins")

_LOADERS = re.compile(r"(?<![A-Za-z0-9_])(?:LD_[A-Za-z0-9_]*|GCONV_PATH|GLIBC_TUNABLES|LOCPATH)(?==)")

_QUOTED, _PLAIN = re.compile(r"(?:[^']|'')*"), re.compile(r"[^\s']+")

#: The only lines of an ad that count here; it may be large.
_LINES = re.compile(rf"^[ \t]*(?:{'|'.join((*_OUTSIDE, 'Environment', 'Env', 'EnvDelim'))})[ \t]*=.*$", re.I | re.M)


def confined(ad: str) -> str:
    """Returns lines for the starter's copy of a job ad, by which nothing of the job's runs outside of its network.

    There may be none. Raises `Refusal` where that cannot be had.
    """
    try:
        found = parse_ad("\n".join(_LINES.findall(ad)))
    except ValueError as error:
        raise Refusal(SubCode.NOT_AN_AD, str(error)) from error
    require_confined(found)
    return put_off(found)


def require_confined(ad: Ad) -> None:
    """Raises `Refusal` for a job with a program that would run outside of the job's network."""
    for name in _OUTSIDE:
        if ad.get(name.lower()) not in (None, ""):
            raise Refusal(
                SubCode.RUNS_OUTSIDE, f"{name} is set: that program would run outside of the job's network, unlimited"
            )


def put_off(ad: Ad) -> str:
    """Returns lines for the starter's copy of the ad, by which nothing of the job's acts on the wrapper; maybe none.

    Raises `Refusal` for an environment that is no text.
    """
    name, environment = "Environment", ad.get("environment")
    if environment is None:
        name, environment = "Env", ad.get("env")  # the older syntax
    if environment is None:
        return ""
    if type(environment) is not str:
        raise Refusal(SubCode.RUNS_OUTSIDE, f"{name} is an expression: it must be a string")
    if not _LOADERS.search(environment.replace("'", "")):
        return ""
    if name == "Environment":
        put = " ".join(_quoted(_renamed(assignment)) for assignment in _assignments(environment))
    else:
        delimiter = ad.get("envdelim")
        between = delimiter if type(delimiter) is str and delimiter else ";"
        put = between.join(map(_renamed, environment.split(between)))
    return f"{name} = {literal(put)}\n"


def _renamed(assignment: str) -> str:
    return f"{LATER}{assignment.lstrip()}" if _LOADERS.match(assignment.lstrip()) else assignment


def _assignments(text: str) -> Iterator[str]:
    """Splits HTCondor's newer syntax ("V2"): blanks between, single quotes around parts, doubled for a quote there.

    Raises `Refusal` for a quote without an end.
    """
    word: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == "'":
            end = _QUOTED.match(text, at + 1).end()  # type: ignore[union-attr]  # it matches an empty text too
            if end == len(text):
                raise Refusal(SubCode.RUNS_OUTSIDE, "Environment has a quote without an end")
            word.append(text[at + 1 : end].replace("''", "'"))
            at = end + 1
        elif text[at].isspace():
            if word:
                yield "".join(word)
            word, at = [], at + 1
        else:
            end = _PLAIN.match(text, at).end()  # type: ignore[union-attr]
            word.append(text[at:end])
            at = end
    if word:
        yield "".join(word)


def _quoted(assignment: str) -> str:
    if not re.search(r"[\s']", assignment):
        return assignment
    return "'" + assignment.replace("'", "''") + "'"
