"""The findings for people, for programs, and for the mail to the site's admins."""

from __future__ import annotations

import getpass
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from htcondor_vpn.doctor.finding import Finding, Outcome
from htcondor_vpn.doctor.verdict import DEFAULT, ENGINES, FEATURES, Verdict, judge

_INTRODUCTION = """\
Subject: what HTCondor jobs with a network need on {node}

I would like to run HTCondor jobs on the compute nodes, with their connections going through one gateway. The program
for that (htcondor_vpn) runs as an ordinary user and asks for no privilege on the node. On {node} (Linux {kernel}), as
seen by {user} on {date}, the following stands in the way:
"""
_END = """\
None of this gives an account a right over the node, its network or other users' processes. I can send the whole report.
"""


class Report:
    """What `findings` mean for this node."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        self.engines = judge(ENGINES, findings)
        self.features = judge(FEATURES, findings)
        self.default_works = self.engines[DEFAULT].works

    def json(self) -> dict[str, Any]:
        """For programs; the fields are those of docs/doctor.md."""
        return {
            "node": platform.node(),
            "kernel": platform.release(),
            "default_works": self.default_works,
            "engines": {name: asdict(verdict) for name, verdict in self.engines.items()},
            "features": {name: asdict(verdict) for name, verdict in self.features.items()},
            "findings": [{**asdict(finding), "outcome": finding.outcome.value} for finding in self.findings],
            "mail": self.mail(),
        }

    def text(self) -> str:
        """For people."""
        parts = [
            f"{platform.node()}, as {_user()}",
            _table((finding.outcome.value, finding.name, finding.said) for finding in self.findings),
            "Engines\n" + _verdicts(self.engines),
            "Features\n" + _verdicts(self.features),
        ]
        if self.default_works:
            parts.append(f"The default way, by the engine `{DEFAULT}`, works here.")
        else:
            lacks = ", ".join(self.engines[DEFAULT].lacks)
            parts.append(f"The default way, by the engine `{DEFAULT}`, does not work here: {lacks}.")
        if mail := self.mail():
            parts.append("What to ask the site's admins for\n\n" + mail)
        return "\n\n".join(parts)

    def mail(self) -> str:
        """What to write to the site's admins; empty if there is nothing to ask for."""
        asked = [finding for finding in self.findings if finding.ask and finding.outcome is not Outcome.GOOD]
        if not asked:
            return ""
        told = {
            "node": platform.node(),
            "kernel": platform.release(),
            "user": _user(),
            "date": time.strftime("%Y-%m-%d"),
        }
        points = [
            f"{number}. {finding.name}: {finding.said}.\n   Please {finding.ask}.\n"
            for number, finding in enumerate(sorted(asked, key=_urgency), 1)
        ]
        return "\n".join([_INTRODUCTION.format(**told), *points, _END]).rstrip("\n")


def _urgency(finding: Finding) -> bool:
    return finding.outcome is not Outcome.BAD


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _verdicts(verdicts: Mapping[str, Verdict]) -> str:
    rows = []
    for name, verdict in verdicts.items():
        rows.append(("yes", name, "") if verdict.works else ("no", name, "lacks " + ", ".join(verdict.lacks)))
    return _table(rows)


def _table(rows: Any) -> str:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows)
