"""The policy file as text: sections of `key = value`, each with its line.

    # a comment
    [class campus]
    destinations = 10.0.0.0/8, storage.example.org tcp port 1094

    [rule transfers]
    when = TARGET.Owner == "cms"
    up_mbps = 100 * TARGET.RequestCpus

Lines continue after a backslash, as in HTCondor's files. What keys a section has stands in `SECTIONS`; what a value
means is for others (`expressions.py`, `rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from htcondor_vpn.config_file import Origin, logical_lines, printable, text_of
from htcondor_vpn.errors import PolicyError
from htcondor_vpn.jobnet.policy.decision import HOST, KNOBS, NONE, TUNNEL

CLASS, NETWORK, RULE = "class", "network", "rule"

RATES = "up_mbps", "down_mbps", "max_up_mbps", "max_down_mbps", "guaranteed_up_mbps", "guaranteed_down_mbps"
NUMBERS = (*RATES, "weight")

#: The keys of each kind of section; those of `REQUIRED` must be there.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    CLASS: ("destinations",),
    NETWORK: ("through", "allow", "deny"),
    RULE: ("when", "network", *NUMBERS, "group", "allow", "deny", "flight_recorder", "hold", "requeue"),
}
REQUIRED: Mapping[str, tuple[str, ...]] = {CLASS: ("destinations",), NETWORK: ("through",), RULE: ()}

#: Names that mean something already.
RESERVED: Mapping[str, tuple[str, ...]] = {CLASS: ("other",), NETWORK: (TUNNEL, HOST, NONE), RULE: (KNOBS,)}

#: A file that is longer is none that a person wrote, and none to hold in memory.
LONGEST_CHARACTERS = 16 << 20

_HEADER = re.compile(r"\[\s*([A-Za-z_-]+)\s+([^\]]*?)\s*\]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_SETTING = re.compile(r"([A-Za-z_]+)\s*=(?![=?!])\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Value:
    """A value's text, and where it stands."""

    text: str
    origin: Origin


@dataclass
class Section:
    """`[kind name]` and its values by key."""

    kind: str
    name: str
    origin: Origin
    values: dict[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"[{self.kind} {self.name}]"


@dataclass
class Source:
    """A policy's sections in their order."""

    sections: list[Section]

    def of_kind(self, kind: str) -> list[Section]:
        """The sections of a kind in their order."""
        return [section for section in self.sections if section.kind == kind]


def read_source(path: Path, problems: list[PolicyError]) -> Source:
    """Reads a policy file, and adds what is wrong with it to `problems`. Raises `ConfigUnreadable`."""
    return parse_source(text_of(path), str(path), problems)


def parse_source(text: str, name: str, problems: list[PolicyError]) -> Source:
    """Parses a policy's text; `name` is what its origins call it. Lines that are wrong are left out."""
    if len(text) > LONGEST_CHARACTERS:
        problems.append(PolicyError(f"{name} is too long", f"at most {LONGEST_CHARACTERS >> 20} million characters"))
        return Source([])
    reader = _Reader(problems)
    for number, line, doubt in logical_lines(text):
        reader.take(line, Origin(name, number), doubt)
    reader.end()
    return Source(reader.sections)


class _Reader:
    def __init__(self, problems: list[PolicyError]) -> None:
        self.sections: list[Section] = []
        self._problems = problems
        self._section: Section | None = None
        self._skipping = False
        self._known: dict[tuple[str, str], Section] = {}

    def take(self, line: str, origin: Origin, doubt: str) -> None:
        """Takes one line with its continuations."""
        try:
            if doubt:
                raise PolicyError(f"{origin}: the value is not complete", doubt)
            if line.startswith("["):
                self._begin(line, origin)
            elif not self._skipping:
                self._set(line, origin)
        except PolicyError as error:
            self._problems.append(error)

    def _begin(self, line: str, origin: Origin) -> None:
        self.end()
        self._section, self._skipping = None, True
        match = _HEADER.fullmatch(line)
        kind = match[1].lower() if match else ""
        if match is None or kind not in SECTIONS:
            remedy = f"write {', '.join(f'[{kind} NAME]' for kind in SECTIONS)}"
            raise PolicyError(f"{origin}: `{printable(line)}` begins no section", remedy)
        name = match[2]
        if not _NAME.fullmatch(name):
            raise PolicyError(
                f"{origin}: {printable(name)!r} is no name of a {kind}", "letters, digits, dots, - and _, at most 63"
            )
        if name.lower() in RESERVED[kind]:
            raise PolicyError(f"{origin}: the {kind} {name} exists already", "give it another name")
        other = self._known.get((kind, name.lower()))
        if other is not None:
            raise PolicyError(f"{origin}: [{kind} {name}] is there twice", f"the first stands at {other.origin}")
        self._section, self._skipping = Section(kind, name, origin), False
        self._known[kind, name.lower()] = self._section
        self.sections.append(self._section)

    def _set(self, line: str, origin: Origin) -> None:
        match = _SETTING.fullmatch(line)
        if match is None:
            raise PolicyError(f"{origin}: `{printable(line)}` is neither a section nor a value", "write key = value")
        if self._section is None:
            raise PolicyError(f"{origin}: `{printable(line)}` stands before any section", "begin with [rule NAME]")
        key, text = match[1].lower(), match[2]
        keys = SECTIONS[self._section.kind]
        if key not in keys:
            raise PolicyError(f"{origin}: {printable(key)} is no key of {self._section}", _suggestion(key, keys))
        if key in self._section.values:
            raise PolicyError(
                f"{origin}: {key} is there twice in {self._section}", f"the first is {self._section.values[key].origin}"
            )
        if not text:
            raise PolicyError(f"{origin}: {key} has no value", "give it one, or remove the line")
        self._section.values[key] = Value(text, origin)

    def end(self) -> None:
        """Ends a section: notes what it lacks."""
        if self._section is None:
            return
        for key in REQUIRED[self._section.kind]:
            if key not in self._section.values:
                self._problems.append(PolicyError(f"{self._section.origin}: {self._section} lacks {key}", "add it"))


def _suggestion(key: str, keys: Iterable[str]) -> str:
    near = get_close_matches(key, list(keys), 1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(keys)}"
