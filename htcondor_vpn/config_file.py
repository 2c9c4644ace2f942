"""HTCondor's configuration syntax, read without HTCondor: the part that can be judged from the files alone.

Understood as `condor_config_val` 23.9 and 25 do: comments, continued lines, `NAME = value`, `NAME @=tag`, names without
regard to case, later wins, `$(NAME)`, `$(NAME:default)`, `$ENV(NAME)`, `$ENV(NAME:default)`, `$(DOLLAR)`, a name's own
earlier value (`LIST = $(LIST) more`) at once and all others at the end.
Not judged, and said so: `use`, `include`, the bodies of `if`, function macros, HTCondor's own defaults.

Where HTCondor guesses silently (an undefined `$(NAME)` is empty, `NAME += value` is `NAME = value`, an unset
`$ENV(NAME)` is the word UNDEFINED) this reader reports an error once the value is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from htcondor_vpn.errors import ConfigError, ConfigUnreadable, VpnError

#: Macros that double at each step could fill the memory; no honest value is longer.
MAX_VALUE_CHARACTERS = 65536
MAX_DEPTH = 50

_BLANKS = " \t\r\v\f"
_NAME = re.compile(r"[A-Za-z0-9_./]+")
_CONDITIONAL = re.compile(r":?(if|elif|else|endif)(?:\s.*)?", re.DOTALL | re.IGNORECASE | re.ASCII)
_STATEMENT = re.compile(r"([^\s=:]+)([^=:@]*)(@=|=|:)(.*)", re.DOTALL | re.ASCII)
_REFERENCE = re.compile(r"(?<!\$)\$([A-Za-z_]*)\(")


@dataclass(frozen=True)
class Origin:
    """Where a value was set: a file and line (from 1), or the environment, or the command line."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Assignment:
    """`NAME = text`, the name in upper case and the text not yet expanded (or final, if `literal`)."""

    name: str
    text: str
    origin: Origin
    literal: bool = False


@dataclass
class Macros:
    """The assignments read so far, later over earlier.

    `doubtful` holds assignments of which only HTCondor knows whether they count, each with the reason; `warnings`
    says what else was passed over.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    table: dict[str, Assignment] = field(default_factory=dict)
    doubtful: list[tuple[Assignment, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def assign(self, name: str, text: str, origin: Origin, *, literal: bool = False) -> None:
        """Sets `name`; references to its own earlier value are replaced at once, unless the text is `literal`."""
        name = name.upper()
        if not literal:
            text = self._with_own_value(name, text, origin)
        self.table[name] = Assignment(name, text, origin, literal)

    def _with_own_value(self, name: str, text: str, origin: Origin) -> str:
        own = re.compile(rf"(?<!\$)\$\({re.escape(name)}(?::([^()]*))?\)", re.IGNORECASE)
        before = self.table[name].text if name in self.table else ""
        if len(before) * len(own.findall(text)) > MAX_VALUE_CHARACTERS:
            raise ConfigUnreadable(f"{origin}: {name} grows too long", f"at most {MAX_VALUE_CHARACTERS} characters")
        return own.sub(lambda match: before or match[1] or "", text)

    def read(self, path: Path, problems: list[VpnError] | None = None) -> None:
        """Reads one file. Raises `ConfigUnreadable` for a file or a line that HTCondor would not take either.

        With `problems`, a line that is no statement is added there and passed over, so that the others are seen too.
        """
        depth = 0
        lines = logical_lines(text_of(path))
        for number, line, doubt in lines:
            origin = Origin(str(path), number)
            conditional = _CONDITIONAL.fullmatch(line)
            if conditional:
                depth += {"if": 1, "endif": -1}.get(conditional[1].lower(), 0)
                if depth < 0 or (depth == 0 and conditional[1].lower() != "endif"):
                    raise ConfigUnreadable(f"{origin}: `{printable(line)}` without `if`", "remove it")
                if depth == 1 and conditional[1].lower() == "if":
                    self.warnings.append(f"{origin}: only HTCondor can judge `{printable(line)}`: its body is skipped")
                continue
            statement = _STATEMENT.fullmatch(line.lstrip(":") if depth else line)
            if statement is None or not _NAME.fullmatch(statement[1].lstrip("@")):
                if depth or re.fullmatch(r"\[\S*", line, re.ASCII):  # a section of an .ini file counts as a comment
                    continue
                problem = ConfigUnreadable(
                    f"{origin}: `{printable(line)}` is not a line of HTCondor's configuration", "write NAME = value"
                )
                if problems is None:
                    raise problem
                problems.append(problem)
                continue
            if statement[3] == "@=":
                text = _here_text(lines, statement[4].strip(_BLANKS), origin)
            else:
                text = statement[4].strip(_BLANKS)
            if depth:
                doubt = "it stands inside `if`, which only HTCondor can judge: set it outside of that"
            self._take(statement, text, origin, doubt, silent=depth > 0)

    def _take(self, statement: re.Match[str], text: str, origin: Origin, doubt: str, *, silent: bool) -> None:
        """Acts on one statement, or notes why not; `silent` if a warning has been given already."""
        name, between, operator = statement[1], statement[2].strip(_BLANKS), statement[3]
        warning = ""
        if operator == ":" and name.lstrip("@").lower() in ("use", "include", "error", "warning"):
            warning = f"{origin}: `{printable(statement[0])}` is skipped: only HTCondor acts on it"
        elif doubt or between:
            doubt = doubt or f"HTCondor knows no `{printable(between)}=`: write {name} = $({name}) …"
            self.doubtful.append((Assignment(name.upper(), text, origin), doubt))
            warning = f"{origin}: {name} is passed over: {doubt}"
        else:
            if operator == ":":
                warning = f"{origin}: `{name} :` is an obsolete form of `{name} =`"
            self.assign(name, text, origin)
        if warning and not silent:
            self.warnings.append(warning)

    def value(self, name: str) -> str:
        """Returns the expanded text of `name`, which must have been assigned. Raises `ConfigError`."""
        assignment = self.table[name.upper()]
        if assignment.literal:
            return assignment.text
        return _Expansion(self, assignment).expanded(assignment.text, (assignment.name,))


class _Expansion:
    """One value's expansion: every name is expanded once, however often it is used."""

    def __init__(self, macros: Macros, root: Assignment) -> None:
        self._macros = macros
        self._root = root
        self._known: dict[str, str] = {}

    def _error(self, says: str, remedy: str) -> ConfigError:
        return ConfigError(f"{self._root.origin}: {self._root.name} {says}", remedy)

    def expanded(self, text: str, path: tuple[str, ...]) -> str:
        """Returns `text` with its references replaced; `path` is the names that led here."""
        if len(path) > MAX_DEPTH:
            raise self._error("refers to other names too deeply", f"at most {MAX_DEPTH} steps")
        pieces: list[str] = []
        length = end = 0
        while match := _REFERENCE.search(text, end):
            close = _closing_parenthesis(text, match.end())
            name, colon, default = text[match.end() : close].partition(":")
            if match[1] not in ("", "ENV") or close < 0 or not _NAME.fullmatch(name):
                raise self._error(
                    f"contains `{match[0]}…`, which is not understood here",
                    "use $(NAME), $(NAME:default), $ENV(NAME) or $ENV(NAME:default)",
                )
            pieces.append(text[end : match.start()])
            refer = self._environment if match[1] else self._macro
            pieces.append(refer(name, default if colon else None, path))
            length += len(pieces[-2]) + len(pieces[-1])
            end = close + 1
            if length > MAX_VALUE_CHARACTERS:
                raise self._error("is too long", f"at most {MAX_VALUE_CHARACTERS} characters")
        return "".join(pieces) + text[end:]

    def _environment(self, name: str, default: str | None, path: tuple[str, ...]) -> str:
        if name in self._macros.environ:
            return self._macros.environ[name]
        if default is None:
            raise self._error(
                f"needs the environment variable {name}, which is not set", f"set it, or give a default: $ENV({name}:…)"
            )
        return self.expanded(default, (*path, ""))

    def _macro(self, name: str, default: str | None, path: tuple[str, ...]) -> str:
        name = name.upper()
        if name == "DOLLAR":
            return "$"
        if name in path:
            raise self._error(f"refers to itself by $({name})", "break the circle")
        referred = self._macros.table.get(name)
        if referred is not None and referred.text:
            if name not in self._known:
                self._known[name] = self.expanded(referred.text, (*path, name))
            return self._known[name]
        if default is not None:
            return self.expanded(default, (*path, ""))
        if referred is not None:
            return ""
        raise self._error(
            f"uses $({name}), which nothing here sets",
            f"set it, or give a default: $({name}:…); HTCondor's own defaults are not known here",
        )


def _closing_parenthesis(text: str, start: int) -> int:
    depth = 1
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1


def text_of(path: Path) -> str:
    """Reads a file whole; raises `ConfigUnreadable`."""
    # Other sites' comments may be in any encoding; surrogateescape keeps their bytes without judging them.
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        cause = f"{printable(str(path))} cannot be read: {reason}"
        raise ConfigUnreadable(cause, "check the path and its permissions") from error
    if "\0" in text:
        raise ConfigUnreadable(f"{path} cannot be read: it is not text", "give a configuration file")
    return text


def _here_text(lines: Iterator[tuple[int, str, str]], tag: str, origin: Origin) -> str:
    """Reads the lines of a value up to the line `@tag`."""
    texts: list[str] = []
    for _, line, _ in lines:
        if line == f"@{tag}":
            return "\n".join(texts)
        texts.append(line)
    raise ConfigUnreadable(f"{origin}: `@={printable(tag)}` is not ended", f"add a line `@{printable(tag)}`")


def logical_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (number of the first line, the line with its continuations, why it is doubtful or "").

    As HTCondor's reader: a line is trimmed at both ends, a backslash at its end joins the next; a comment line does not
    continue, but may stand among the continued lines when it ends in a backslash itself.
    """
    whole, first, doubt = "", 0, ""
    continuing = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANKS)
        if not continuing:
            if not line or line.startswith("#"):
                continue
            first, doubt = number, ""
        elif line.startswith("#"):
            if not line.endswith("\\"):
                # HTCondor ends the value here and keeps the comment's last character.
                doubt = f"the comment in line {number} ends the continued value: end it in a backslash, or move it"
            line = line[-1:] if line.endswith("\\") else ""
        whole += line
        continuing = line.endswith("\\")
        if continuing:
            whole = whole[:-1]
            continue
        if whole.strip(_BLANKS):
            yield first, whole.strip(_BLANKS), doubt
        whole = ""
    if continuing and whole.strip(_BLANKS):
        yield first, whole.strip(_BLANKS), doubt


def printable(text: str, length: int = 60) -> str:
    """Shortens `text` for a message and makes it one printable line."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in text)
