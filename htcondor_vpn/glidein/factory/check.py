"""Looks through a factory's XML for what keeps entries with a tunnel from working, and says where and what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.glidein.factory.document import Element
from htcondor_vpn.glidein.factory.entry import ATTRIBUTE, POOL_TOKEN, PROXY
from htcondor_vpn.glidein.factory.entry_files import SETUP, EntryFile, entry_files
from htcondor_vpn.glidein.factory.site import NAMES, Way

#: The grid types whose submit files take an entry's `submit_attr`s, unless `all_grid_types` says so of one.
_TAKES_ATTRIBUTES = re.compile(r"batch .*|condor|gce|ec2|arc")

#: What a `<file>` is where it does not say.
_DEFAULTS = {"const": "False", "executable": "False", "wrapper": "False", "untar": "False", "after_entry": "False"}

#: What says how several glideins of one batch job are started: all by one command, or each by one.
_MULTIGLIDEIN = "GLIDEIN_MULTIGLIDEIN_LAUNCHALL", "GLIDEIN_MULTIGLIDEIN_LAUNCHER"

_JWT = re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+")


class Finding(NamedTuple):
    """One mistake: its line, what is wrong, and the remedy."""

    line: int
    cause: str
    remedy: str


class Checked(NamedTuple):
    """Which entries have a tunnel, by name, and what is wrong with them."""

    entries: Mapping[str, Way]
    findings: list[Finding]


def check(root: Element, only: str | None = None) -> Checked:
    """Checks the entries that have a tunnel, or the one called `only`, with what they need of the whole factory."""
    entries: dict[str, Way] = {}
    findings = list(_secrets(root))
    for entry in root.all("entries", "entry"):
        name = entry.get("name")
        if only is not None and name != only:
            continue
        way = _way(entry)
        if way is None:
            if only is not None:
                remedy = "htcondor-vpn glidein factory-entry writes one"
                findings.append(Finding(entry.line, f"entry {name} has no tunnel", remedy))
            continue
        entries[name] = way
        findings += [finding._replace(cause=f"entry {name}: {finding.cause}") for finding in _entry(root, entry, way)]
    if only is not None and only not in entries and not findings:
        findings.append(Finding(root.line, f"there is no entry {only}", "look at the names of the entries"))
    return Checked(entries, sorted(findings))


def _attrs(*owners: Element) -> dict[str, Element]:
    """The `<attr>`s by name; later owners win."""
    return {attr.get("name"): attr for owner in owners for attr in owner.all("attrs", "attr")}


def _submit_attrs(entry: Element) -> list[Element]:
    return list(entry.all("config", "submit", "submit_attrs", "submit_attr"))


def _named(elements: list[Element], name: str) -> list[Element]:
    return [element for element in elements if element.get("name").lower() == name]


def _is_launcher(path: str) -> bool:
    return Path(path).name == NAMES["LAUNCHER"]


def _launchers(attrs: Mapping[str, Element]) -> list[Element]:
    """What starts a batch job's several glideins, or each of them."""
    return [attrs[name] for name in _MULTIGLIDEIN if name in attrs]


def _way(entry: Element) -> Way | None:
    attrs = _attrs(entry)
    said = attrs[ATTRIBUTE].get("value") if ATTRIBUTE in attrs else ""
    if said in [way.value for way in Way]:
        return Way(said)
    launched = [element.get("value") for element in _named(_submit_attrs(entry), "executable")]
    launched += [attr.get("value") for attr in _launchers(attrs)]
    return Way.WRAP if any(map(_is_launcher, launched)) else None


def _secrets(root: Element) -> Iterator[Finding]:
    """The stage area and all attributes are public."""
    for owner in (root, *root.all("entries", "entry")):
        for attr in owner.all("attrs", "attr"):
            if _JWT.search(attr.get("value")):
                remedy = "revoke it, and have the batch system carry a file instead (transfer_input_files)"
                yield Finding(attr.line, f"attribute {attr.get('name')} holds a token, and is public", remedy)
        for file in owner.all("files", "file"):
            if file.get("absfname").endswith(".token"):
                remedy = "have the batch system carry it instead (transfer_input_files)"
                yield Finding(file.line, f"{file.get('absfname')} would be in the stage area, which is public", remedy)


def _entry(root: Element, entry: Element, way: Way) -> Iterator[Finding]:
    attrs = _attrs(root, entry)
    ccb = attrs.get("USE_CCB")
    if ccb is None or not ccb.is_true("value"):
        remedy = '<attr name="USE_CCB" value="True" …/>: nobody can connect to a glidein in a tunnel'
        yield Finding(entry.line if ccb is None else ccb.line, "USE_CCB is not True", remedy)
    cvmfs = attrs.get("GLIDEIN_USE_CVMFSEXEC")
    if cvmfs is not None and cvmfs.get("value") not in ("", "0"):
        remedy = "take it out, and set HTVPN_CVMFSEXEC for htvpn-launch: inside there are no set-uid programs"
        yield Finding(cvmfs.line, "GLIDEIN_USE_CVMFSEXEC does not work in a tunnel", remedy)
    submit = _submit_attrs(entry)
    if not _TAKES_ATTRIBUTES.fullmatch(entry.get("gridtype")):
        for element in submit:
            if not element.is_true("all_grid_types"):
                cause = f"the grid type {entry.get('gridtype')} passes over the submit_attr {element.get('name')}"
                yield Finding(element.line, cause, 'all_grid_types="True"')
    if way is Way.WRAP:
        yield from _executable(entry, submit, attrs)
    elif not entry.get("proxy_url"):
        yield Finding(entry.line, "there is no proxy_url by which the glidein could download", 'proxy_url="http://…"')
    yield from _transferred(entry, submit, way)
    yield from _files(root, entry, way)


def _executable(entry: Element, submit: list[Element], attrs: Mapping[str, Element]) -> Iterator[Finding]:
    found = _named(submit, "executable")
    launchers = [attr for attr in _launchers(attrs) if _is_launcher(attr.get("value"))]
    if not found and not launchers:
        remedy = '<submit_attr name="executable" value="/…/htvpn-launch"/>'
        yield Finding(entry.line, "nothing starts the glidein in the tunnel", remedy)
    if found and launchers:
        cause = f"executable and {launchers[0].get('name')} both start a tunnel"
        yield Finding(launchers[0].line, cause, "keep one")
    for element in found:
        path = element.get("value")
        if not path.startswith("/"):
            yield Finding(element.line, f"executable is {path}", "name it by its whole path")
        elif not os.access(path, os.X_OK):
            yield Finding(element.line, f"{path} cannot be executed on this host", f"chmod +x {path}, or put it there")


def _transferred(entry: Element, submit: list[Element], way: Way) -> Iterator[Finding]:
    found = _named(submit, "transfer_input_files")
    if len(found) != 1:
        line = found[1].line if found else entry.line
        cause = "transfer_input_files is there more than once" if found else "there is no transfer_input_files"
        yield Finding(line, cause, "htcondor-vpn glidein factory-entry writes one")
        return
    element = found[0]
    words = [word.strip() for word in element.get("value").split(",") if word.strip()]
    names = [Path(word).name for word in words if not word.startswith("$")]
    wanted = ["glidein_startup.sh", str(NAMES["BUNDLE"]), str(NAMES["KNOBS"])] if way is Way.WRAP else []
    for name in wanted:
        if name not in names:
            yield Finding(element.line, f"transfer_input_files has no {name}", "add it: the launcher needs it")
    for variable in (POOL_TOKEN, *([PROXY] if entry.get("gridtype").startswith("batch ") else [])):
        if not any(word.startswith(variable.partition(":")[0]) for word in words):
            remedy = f"add {variable}: this list replaces the factory's own"
            yield Finding(element.line, "transfer_input_files has not the pool's credential", remedy)
    crypted = [word.strip() for each in _named(submit, "encrypt_input_files") for word in each.get("value").split(",")]
    for word in words:
        yield from _file(element.line, word)
        if word.endswith(".token") and word not in crypted:
            remedy = f"add it to encrypt_input_files, with {POOL_TOKEN}: that list replaces the factory's own, too"
            yield Finding(element.line, f"{word} is not encrypted on its way", remedy)


def _file(line: int, word: str) -> Iterator[Finding]:
    path = Path(word)
    if not path.is_absolute():
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield Finding(line, f"{path}: {error.strerror}", "put it there")
        return
    if path.suffix == ".token" and mode & 0o077:
        yield Finding(line, f"{path} can be read by others on this host", f"chmod 600 {path}")


def _files(root: Element, entry: Element, way: Way) -> Iterator[Finding]:
    """The files by which the glidein uses its tunnel: there, in their order, the last ones of one list."""
    own, everybodys = list(entry.all("files", "file")), list(root.all("files", "file"))
    listed = everybodys if any(_name(file) == SETUP.name for file in everybodys) else own
    wanted = entry_files(way)
    places = []
    for each in wanted:
        found = [(place, file) for place, file in enumerate(listed) if _name(file) == each.name]
        if not found:
            yield Finding(entry.line, f"its <files> have no {each.name}", "factory-entry writes the list")
            continue
        place, file = found[0]
        places.append(place)
        yield from _attributes(each, file, listed is everybodys)
    if places != sorted(places):
        order = ", ".join(file.name for file in wanted)
        yield Finding(listed[places[0]].line, "the files of the tunnel are in the wrong order", f"the order is {order}")
    elif places:
        for file in listed[places[-1] + 1 :]:
            remedy = "move the files of the tunnel behind it: they have to come last"
            yield Finding(file.line, f"{_name(file)} comes behind the files of the tunnel", remedy)


def _attributes(wanted: EntryFile, file: Element, everybodys: bool) -> Iterator[Finding]:
    after = {"after_entry": "True"} if everybodys else {}
    for name, value in {"wrapper": "False", "untar": "False", **wanted.attributes, **after}.items():
        has = file.get(name, _DEFAULTS.get(name, ""))
        if has.lower() != value.lower():
            yield Finding(file.line, f'{wanted.name} has {name}="{has}"', f'{name}="{value}"')


def _name(file: Element) -> str:
    return file.get("relfname") or Path(file.get("absfname")).name
