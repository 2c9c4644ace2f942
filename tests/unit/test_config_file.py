"""HTCondor's configuration syntax, read without HTCondor."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from htcondor_vpn.config_file import Macros
from htcondor_vpn.errors import ConfigError, ConfigUnreadable

DATA = Path(__file__).resolve().parents[1] / "data"

#: tests/pool checks that condor_config_val says the same of that file (with HOME=/home/x).
EXPECTED: dict[str, str] = json.loads((DATA / "htcondor_syntax.json").read_text())


def read(tmp_path: Path, text: str) -> Macros:
    path = tmp_path / "some.conf"
    path.write_text(text)
    macros = Macros({"HOME": "/home/x"})
    macros.read(path)
    return macros


@pytest.mark.parametrize("name", EXPECTED)
def test_as_htcondor_reads_it(tmp_path: Path, name: str) -> None:
    macros = read(tmp_path, (DATA / "htcondor_syntax.conf").read_text())
    assert macros.value(name) == EXPECTED[name]
    assert not macros.warnings


def test_lines_are_counted_from_the_first_of_a_continued_one(tmp_path: Path) -> None:
    macros = read(tmp_path, "A = 1\n\nB = 2 \\\n 3 \\\n 4\nC = 5\n")
    assert [macros.table[name].origin.line for name in "ABC"] == [1, 3, 6]


def test_a_comment_that_ends_a_continued_value_is_doubtful(tmp_path: Path) -> None:
    macros = read(tmp_path, "A = one \\\n  # comment\nB = 2\n")
    assert [assignment.name for assignment, _ in macros.doubtful] == ["A"]
    assert macros.value("B") == "2"


def test_what_only_htcondor_can_judge(tmp_path: Path) -> None:
    text = "use ROLE: Execute\ninclude : /x\nif defined X\nA = 1\nelse\nA = 2\nthis is no line\nendif\nB += 2\nC : 3\n"
    macros = read(tmp_path, text)
    assert sorted(macros.table) == ["C"]
    assert [assignment.name for assignment, _ in macros.doubtful] == ["A", "A", "B"]
    assert [warning.split(": ")[0].rsplit(":", 1)[1] for warning in macros.warnings] == ["1", "2", "3", "9", "10"]


@pytest.mark.parametrize(
    "text",
    [
        "no operator here",
        "word",
        "two words",
        "[two words]",
        "endif",
        "A @=end\nline\n",
        "a-b = 1",
        "= 1",
        "A\0 = 1",
        "$(A) = 1",
    ],
)
def test_what_htcondor_refuses_too(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigUnreadable, match=r"some\.conf"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "A = $(B)\nB = $(A)",
        "A = $(B)",
        "A = $INT(3)",
        "A = $(B",
        "A = $ENV(NOSUCH)",
        "A = $(B:$(C))",
        "A = $(B C)",
        "A = $()",
    ],
)
def test_values_that_nobody_can_know(tmp_path: Path, text: str) -> None:
    macros = read(tmp_path, text)
    with pytest.raises(ConfigError, match=r"some\.conf:1: A "):
        macros.value("A")


def test_doubling_macros_end_in_an_error_and_soon(tmp_path: Path) -> None:
    start = time.process_time()
    steps = "".join(f"A{n + 1} = $(A{n})$(A{n})\n" for n in range(40))
    empty = read(tmp_path, "A0 =\n" + steps)
    assert empty.value("A40") == ""
    full = read(tmp_path, "A0 = x\n" + steps)
    with pytest.raises(ConfigError, match="too long"):
        full.value("A40")
    with pytest.raises(ConfigUnreadable, match="too long"):
        read(tmp_path, "A = x\n" + "A = $(A)$(A)\n" * 40)
    nested = read(tmp_path, "A = " + "$(B:" * 5000 + ")" * 5000)
    with pytest.raises(ConfigError, match="too deeply"):
        nested.value("A")
    assert time.process_time() - start < 5


def test_comments_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "some.conf"
    path.write_bytes("# für später\nA = 1\n".encode("latin-1"))
    macros = Macros()
    macros.read(path)
    assert macros.value("A") == "1"


@pytest.mark.parametrize("name", ["missing", ".", "not\0possible"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigUnreadable, match="cannot be read"):
        Macros().read(tmp_path / name)
