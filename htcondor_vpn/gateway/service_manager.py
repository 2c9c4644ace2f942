"""systemd: what the gateway tells it (sd_notify(3)), and a unit for it (systemd.exec(5))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.settings import Settings

_UNIT = "htcondor-vpn-gateway.service"
_STATE_FOLDER = Path("/var/lib")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_SPARE_SECONDS = 15.0


def notify(*lines: str) -> None:
    """Tells the service manager that started us, if one did: lines such as READY=1. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.setblocking(False)
        sock.send("\n".join(lines).encode())


def unit(settings: Settings, user: str, program: list[str], config: Path | None) -> str:
    """Returns a unit that runs `program gateway` as `user` with these settings' folder, and the file `config`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which a running gateway does not need

    folder: Path = settings.gateway_dir
    words = [*program, "gateway", "--dir", str(folder), *(["--config", str(config)] if config else [])]
    inside = folder.parent == _STATE_FOLDER
    used = [folder, *(Path(word) for word in program if word.startswith("/")), *([config] if config else [])]
    at_home = any(home in path.parents for path in used for home in HOMES)
    environment = Environment(
        loader=PackageLoader("htcondor_vpn.gateway"), undefined=StrictUndefined, trim_blocks=True,
        autoescape=False,  # noqa: S701  it is no HTML
    )  # fmt: skip
    return environment.get_template(_UNIT).render(
        user=user,
        command=" ".join(map(quoted, words)),
        folder=quoted(str(folder)),
        state_directory=folder.name if inside else "",
        stop_seconds=int(settings.gateway_grace_period + _SPARE_SECONDS),
        protect_home="read-only" if at_home else "yes",
    )


def quoted(word: str) -> str:
    """Writes a word of a command line so that systemd takes it as it is (systemd.service(5), systemd.unit(5))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or any(c.isspace() or c in "';" for c in word) else word
