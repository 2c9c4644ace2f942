"""Writes the XML of a factory's entry for a site."""

from __future__ import annotations

from pathlib import Path

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.glidein.factory.entry_files import entry_files, path_of
from htcondor_vpn.glidein.factory.site import FactorySite, Way

#: The attribute by which a frontend, and `check`, know what an entry does.
ATTRIBUTE = "GLIDEIN_VPN"

#: What the factory itself would have the batch system carry along: an entry's own list replaces it, so it has to repeat
#: it. The second is for entries of the grid types `batch …`.
POOL_TOKEN = "$ENV(IDTOKENS_FILE:)"  # noqa: S105  (no token, but where it is)
PROXY = "$ENV(X509_USER_PROXY:/dev/null)"


def transferred(site: FactorySite) -> list[str]:
    """What the batch system has to carry to the node, in the syntax of a submit file."""
    names = ("LAUNCHER", "BUNDLE", "KNOBS", "TOKEN") if site.way is Way.WRAP else ("TOKEN",)
    files = [site.files[name] for name in names if name in site.files and name != "LAUNCHER"]
    startup = ["glidein_startup.sh"] if site.way is Way.WRAP else []
    return [*startup, *files, *_credentials(site)]


def encrypted(site: FactorySite) -> list[str]:
    """What of that is secret, and has to be encrypted on its way: as for the other list, the factory's own, too."""
    return [site.files[name] for name in ("TOKEN",) if name in site.files] + _credentials(site)


def _credentials(site: FactorySite) -> list[str]:
    return [POOL_TOKEN, *([PROXY] if site.values["GRIDTYPE"].startswith("batch ") else [])]


def render(site: FactorySite) -> str:
    """Returns the elements, with a comment where each belongs; raises `ProgramMissing` without jinja2."""
    try:
        import jinja2
    except ImportError as error:
        raise ProgramMissing("the Python package jinja2 is not installed", "pip install jinja2") from error

    values = site.values
    attrs = [
        ("GLIDEIN_Site", "string", values["SITE"], "True"),
        ("GLIDEIN_CPUS", "string", values["CPUS"], "True"),
        ("GLIDEIN_MaxMemMBs", "int", values["MAX_MEMORY_MB"], "True"),
        ("GLIDEIN_Max_Walltime", "int", values["MAX_WALLTIME_SECONDS"], "False"),
        ("USE_CCB", "string", "True", "True"),
        (ATTRIBUTE, "string", site.way.value, "True"),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("entry.xml.j2").render(
        v=values, wrap=site.way is Way.WRAP, files=site.files, attrs=attrs, transferred=transferred(site),
        encrypted=encrypted(site),
        listed=[(path_of(file, site), file) for file in entry_files(site.way)],
    )  # fmt: skip
