"""Where this machine gets its Debian packages from: its own apt sources, in both of their formats.

sources.list(5) describes them: one-line (`deb [options] URI SUITE COMPONENT…`) and deb822 stanzas. The mirror named
there is the one that is known to be reachable from here, so other suites of Debian are fetched from it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from htcondor_vpn.errors import ConfigError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Source:
    """One place to get binary packages from; a deb822 stanza with several URIs is several of these."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def sources(apt_folder: Path = Path("/etc/apt")) -> Iterator[Source]:
    """Yields the enabled sources of binary packages, in apt's order."""
    one_line = [apt_folder / "sources.list", *sorted((apt_folder / "sources.list.d").glob("*.list"))]
    for path in one_line:
        if path.is_file():
            yield from _one_line(path.read_text(encoding="utf-8", errors="replace"))
    for path in sorted((apt_folder / "sources.list.d").glob("*.sources")):
        yield from _deb822(path.read_text(encoding="utf-8", errors="replace"))


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line.strip())
        if match:
            yield Source(match[1], (match[2],), tuple(match[3].split()))


def _deb822(text: str) -> Iterator[Source]:
    without_comments = re.sub(r"(?m)^#.*\n?", "", text)
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"(?m)^([A-Za-z-]+):((?:.*)(?:\n[ \t]+.*)*)", stanza)
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled", ["yes"])[0].lower() == "no":
            continue
        for uri in fields.get("uris", []):
            yield Source(uri, tuple(fields.get("suites", ())), tuple(fields.get("components", ())))


def main_mirror(apt_folder: Path = Path("/etc/apt"), os_release: Path = Path("/etc/os-release")) -> str:
    """Returns the URI of the machine's mirror of Debian's main archive; raises `ConfigError` when it has none.

    That is the source which offers this release's own suite (neither its security nor its updates suite, nor another
    project's packages for it) with the component `main`.
    """
    found = re.search(r'(?m)^VERSION_CODENAME="?(\w+)', os_release.read_text(encoding="utf-8"))
    names = {found[1] if found else "", "stable", "oldstable", "testing", "unstable", "sid"}
    for source in sources(apt_folder):
        if "main" in source.components and names.intersection(source.suites):
            return source.uri
    raise ConfigError(
        f"the apt sources under {apt_folder} name no mirror of Debian's main archive",
        "name one in HTCONDOR_VPN_TEST_MIRROR",
    )
