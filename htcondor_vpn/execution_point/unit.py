"""A systemd unit for the broker of an execution point (systemd.exec(5))."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from htcondor_vpn.errors import UsageError
from htcondor_vpn.gateway.service_manager import HOMES, quoted
from htcondor_vpn.settings import Settings

_UNIT = "htcondor-vpn-execution-point.service"
_RUNTIME = Path("/run")


def unit(settings: Settings, program: list[str], config: Path | None) -> str:
    """Returns a unit that runs `program execution-point` with the file `config`; raises `UsageError`."""
    folder: Path = settings.execution_point_dir
    if folder.parent != _RUNTIME:
        raise UsageError(f"a service's folder is in /run, and not {folder}", "leave HTCONDOR_VPN_EXECUTION_POINT_DIR")
    words = [*program, "execution-point", "--dir", str(folder), *(["--config", str(config)] if config else [])]
    used = [*(Path(word) for word in program if word.startswith("/")), *([config] if config else [])]
    at_home = any(home in path.parents for path in used for home in HOMES)
    environment = Environment(
        loader=PackageLoader("htcondor_vpn.execution_point"), undefined=StrictUndefined, trim_blocks=True,
        autoescape=False,  # noqa: S701  it is no HTML
    )  # fmt: skip
    return environment.get_template(_UNIT).render(
        command=" ".join(map(quoted, words)),
        runtime_directory=folder.name,
        protect_home="read-only" if at_home else "yes",
    )
