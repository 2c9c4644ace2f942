"""The pages: links lead somewhere, the index leads to all pages, commands are understood, every exit code is on one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import tables
from htcondor_vpn import errors
from htcondor_vpn.cli.main import parser_for
from htcondor_vpn.knobs import KNOBS

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = [TOP / "README.md", *sorted(DOCS.glob("*.md"))]
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
_COMMAND = re.compile(r"^(?: {4}|\$ )?(?:exec |node |dmz )?(?:/\S*/)?htcondor-vpn (?!.*   [^ #])(.+)$", re.MULTILINE)
_KNOB = re.compile(r"(?<![A-Z])(?:_CONDOR_)?(HTCONDOR_VPN_[A-Z0-9_]*[A-Z0-9])\b")
_VARIABLES = re.compile(r"HTCONDOR_VPN_(CONFIG|RUN_DIR|TEST_\w+)")  # which are no knobs, but the environment's


def prose(page: Path) -> str:
    """Returns the page without its blocks of code, in which a bracket is no link and a # no heading."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them; of a heading that comes again, with -1, -2, …"""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        anchor = name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        again = 0
        while anchor in found:
            again += 1
            anchor = f"{name}-{again}"
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words behind `htcondor-vpn` of each line that is such a command, up to a pipe or the like."""
    for line in _COMMAND.findall(re.sub(r"\\\n *", "", page.read_text())):
        words = shlex.split(line, comments=True)
        yield words[: next((end for end, word in enumerate(words) if re.match(r"\d?[>|<&;]", word)), None)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page):
        noun = next(word for word in words if not word.startswith("-"))
        assert parser_for(noun).parse_args(words).noun == noun


def test_every_page_is_in_the_index() -> None:
    linked = {link.partition("#")[0] for link in _LINK.findall(prose(DOCS / "index.md"))}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_every_exit_code_is_in_a_table_and_of_one_error() -> None:
    rows = " ".join(row for page in PAGES for row in re.findall(r"^\| ([\d, ]+) \|", prose(page), re.MULTILINE))
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VpnError)}
    codes = {kind.exit_code for kind in kinds}
    assert len(codes) == len(kinds)
    assert codes <= {int(code) for code in re.findall(r"\d+", rows)}


def test_the_pages_name_no_knob_that_does_not_exist() -> None:
    known = {knob.name for knob in KNOBS}
    for page in PAGES:
        named = {name for name in _KNOB.findall(page.read_text()) if not _VARIABLES.fullmatch(name)}
        assert named <= known, page.name


def test_the_tables_of_results_are_those_of_the_files_that_they_cite() -> None:
    page = tables.PAGE.read_text()
    assert tables.renewed(page) == page, "python -m benchmarks.tables"
