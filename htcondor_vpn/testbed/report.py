"""What a demo or a benchmark has to show: rows of measured values, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

#: What is wanted of a row that is there to be known, whatever it says.
MEASURED = "measured"

_NAME_WIDTH, _VALUE_WIDTH = 62, 26


@dataclass(frozen=True)
class Row:
    """One measured value: `wanted` says in words what it must be, `ok` whether it is."""

    name: str
    ok: bool
    value: Any
    unit: str = ""
    wanted: str = ""


class Report:
    """A table whose rows are shown as they are measured: one that takes long, or breaks off, has said so far."""

    def __init__(self, title: str) -> None:
        self.rows: list[Row] = []
        self._console = Console(highlight=False, soft_wrap=True)
        self._console.print(f"[bold]{title}[/]")

    def add(self, name: str, ok: bool, value: Any, unit: str = "", wanted: str = "") -> None:
        """Adds a row and shows it."""
        row = Row(name, bool(ok), value, unit, wanted)
        self.rows.append(row)
        mark, style = ("ok", "green") if row.ok else ("FAIL", "bold red")
        line = Text.assemble(
            (f"  {mark:<5}", style),
            f"{name:<{_NAME_WIDTH}} ",
            (f"{f'{shown(value)} {unit}'.strip():<{_VALUE_WIDTH}}", "bold"),
            ("" if wanted in ("", MEASURED) else f" wanted: {wanted}", "dim"),
        )  # fmt: skip
        self._console.print(line)

    def say(self, text: str) -> None:
        """Shows what goes on now."""
        self._console.print(Text(text, style="cyan"))

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def conclude(self) -> None:
        """Shows how many rows are as wanted, and names those that are not."""
        bad = [row.name for row in self.rows if not row.ok]
        if bad:
            self._console.print(Text(f"{len(bad)} of {len(self.rows)} rows failed: {'; '.join(bad)}", style="bold red"))
        else:
            self._console.print(Text(f"All {len(self.rows)} rows are as wanted.", style="bold green"))

    def write(self, file: TextIO) -> None:
        """Writes `{"ok": …, "rows": [{"name", "ok", "value", "unit", "wanted"}, …]}`."""
        json.dump({"ok": self.ok, "rows": [asdict(row) for row in self.rows]}, file, indent=2)
        file.write("\n")
        file.flush()


def shown(value: Any) -> str:
    """`value` for people: three digits of a fraction."""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
