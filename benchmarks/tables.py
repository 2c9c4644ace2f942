"""`python -m benchmarks.tables`: writes the results that docs/performance.md cites into it, as tables.

A comment in the page, `<!-- results: 2026-01-31-pilot.json -->`, names a file of `benchmarks/results`; what stands
between it and `<!-- end of results -->` is made from that file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from htcondor_vpn.testbed.report import MEASURED, shown

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

_CITED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def renewed(page: str) -> str:
    """The page with each table made anew; raises OSError for a file that is cited and not there."""
    return _CITED.sub(lambda cited: cited[1] + _section(json.loads((RESULTS / cited[2]).read_text())) + cited[3], page)


def _section(run: dict[str, Any]) -> str:
    lines = [
        f"{run['date']}, {run['cpu']}, {run['cores']} cores, kernel {run['kernel']}, Python {run['python']}, "
        f"{run['rounds']} rounds: `{run['command']}`",
        "",
        "| measured | value | wanted |",
        "|---|---|---|",
    ]
    for row in run["rows"]:
        wanted = "" if row["wanted"] == MEASURED else row["wanted"]
        missed = "" if row["ok"] else ": **not reached**"
        value = f"{shown(row['value'])} {row['unit']}".strip()
        lines.append(f"| {row['name']} | {value} | {wanted}{missed} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
