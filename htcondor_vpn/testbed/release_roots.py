"""Root file systems of other Debian releases, in which the bundle is tried as an ordinary user and without a network.

debootstrap makes them, as root and once; entering them takes bubblewrap and no privilege. bubblewrap makes the folder
the root of its namespace (pivot_root(2)): in a plain chroot the kernel forbids user namespaces.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed.cache import cache_folder, make_once
from htcondor_vpn.testbed.debian_sources import main_mirror
from htcondor_vpn.testbed.set_up_command import exit_code, say

#: The packages beside the smallest system: one release has a Python of its own, the oldest that we support.
RELEASES = {"bullseye": "python3", "bookworm": "", "trixie": ""}

#: What no test needs.
_SUPERFLUOUS = "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"
_DEBOOTSTRAP_SECONDS = 1200.0


def made(release: str) -> Path | None:
    """Returns the folder of `release`, or None if it has not been made."""
    folder = _folder(release)
    return folder if folder.is_dir() else None


def make(release: str) -> Path:
    """Returns the folder of `release`, which is made (a minute, 150 MB) if it is not in the cache; then for root only.

    Raises `UsageError`, and as `make_once`.
    """
    if release not in RELEASES:
        raise UsageError(f"there is no root file system of {release!r}", f"choose one of {', '.join(RELEASES)}")
    folder = _folder(release)
    if folder.is_dir():
        return folder
    if os.geteuid() != 0:
        raise UsageError(f"debootstrap makes the root file system of {release} for root only", "run it as root, once")
    make_once(f"the root file system of {release}", folder, folder.is_dir, lambda: _build(release, folder))
    return folder


def _folder(release: str) -> Path:
    return cache_folder() / "releases" / release


def _build(release: str, folder: Path) -> None:
    new = folder.with_name(f".{release}-new")
    if new.exists():
        shutil.rmtree(new)
    say(f"making a root file system of Debian {release}")
    more = [f"--include={RELEASES[release]}"] if RELEASES[release] else []
    mirror = os.environ.get("HTCONDOR_VPN_TEST_MIRROR") or main_mirror()
    argv = ["debootstrap", "--variant=minbase", *more, release, str(new), mirror]
    run_program(argv, timeout_seconds=_DEBOOTSTRAP_SECONDS)
    for part in _SUPERFLUOUS:
        shutil.rmtree(new / part)
    new.chmod(0o755)
    new.rename(folder)


def enter_argv(
    root: Path, argv: Sequence[str], visible: Sequence[Path], environment: Mapping[str, str] | None = None
) -> list[str]:
    """The command line that runs `argv` in `root`, which stays as it is, with the folders `visible` where they are.

    /tmp is new and empty, and HOME is in it; of the caller's environment nothing is left. The network is the caller's.
    """
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/tmp/home", "LC_ALL": "C.UTF-8", **(environment or {})}  # noqa: S108
    words = [find_program("bwrap", "bubblewrap"), "--die-with-parent", "--ro-bind", str(root), "/", "--clearenv"]
    words += ["--dev-bind", "/dev", "/dev", "--bind", "/proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp"]  # noqa: S108
    for folder in visible:
        words += ["--bind", str(folder), str(folder)]
    for name, value in environ.items():
        words += ["--setenv", name, value]
    return [*words, "--dir", environ["HOME"], "--chdir", environ["HOME"], "--", *argv]


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the root file systems of the releases in `argv`, or all; returns an exit code."""
    return exit_code(lambda: [make(release) for release in (sys.argv[1:] if argv is None else argv) or RELEASES])


if __name__ == "__main__":
    sys.exit(main())
