"""Root's way to an ordinary account: what claims to need no privilege must not be shown to work as root.

Whose account: that of the user who called sudo; otherwise `htcondor-vpn`, which the project's set-up makes.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.errors import AccountUnusable
from htcondor_vpn.linux import namespaces
from htcondor_vpn.linux.mounts import MS_BIND, MS_REC, keep_mounts_to_ourselves, mount

NAME = "htcondor-vpn"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Variables of root that go along; the rest (credentials, desktop session, TMPDIR, …) is root's own.
_KEPT = re.compile(
    r"TERM|COLORTERM|NO_COLOR|FORCE_COLOR|COLUMNS|LINES|LANG|LC_.*|TZ|CI|VIRTUAL_ENV|PYTEST_.*|PYTHON.*"
    r"|HTCONDOR_VPN_.*|_CONDOR_HTCONDOR_VPN_.*"
)

_PR_SET_DUMPABLE = 4


class Account(NamedTuple):
    """An ordinary user's entry in the password file."""

    name: str
    uid: int
    gid: int
    home: str


def ordinary_account(environ: Mapping[str, str]) -> Account:
    """Returns the account that root is to become; raises `AccountUnusable` with the command that makes one."""
    number = environ.get("SUDO_UID", "")
    try:
        entry = pwd.getpwuid(int(number)) if number.isdecimal() and int(number) else pwd.getpwnam(NAME)
    except KeyError:
        raise AccountUnusable(
            "root does not show that no privilege is needed, and there is no ordinary account to become",
            f"useradd --system --create-home {NAME}",
        ) from None
    if entry.pw_uid == 0:
        raise AccountUnusable(f"the account {entry.pw_name} is root's own", f"useradd --system --create-home {NAME}")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def environment(account: Account, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns what the account's own login would have, and of `environ` what is not root's own."""
    kept = {name: value for name, value in environ.items() if _KEPT.fullmatch(name)}
    return {**kept, "HOME": account.home, "USER": account.name, "LOGNAME": account.name, "PATH": PATH}


def become(account: Account) -> None:
    """Gives root up for good, in this process and what it executes; raises OSError."""
    os.setgroups(os.getgrouplist(account.name, account.gid))
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    # The kernel took /proc/self away from the account when the uid changed; its user namespaces are mapped there.
    namespaces.prctl(_PR_SET_DUMPABLE, 1)


@contextmanager
def _seen_by(account: Account) -> Iterator[None]:
    """Within, this process' file accesses are checked as the account's."""
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(account.name, account.gid))
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _barrier(path: Path, account: Account) -> Path | None:
    """Returns the topmost folder on the way to and including `path` that the account cannot pass."""
    with _seen_by(account):
        for folder in (*reversed(path.parents), path):
            if not os.access(folder, os.X_OK, effective_ids=True):
                return folder
    return None


def _outermost(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in sorted(paths, key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(outer) for outer in found):
            found.append(path)
    return found


def make_reachable(account: Account, folders: Iterable[Path], working: Path) -> None:
    """Moves into a mount namespace in which `folders` lie where they are, although a folder above is closed to the
    account: an empty file system hides that one, and the folders are bound into it. So a checkout below /root works.

    `working`, the current folder, comes along too; of one that is closed or above the others only the path does.
    Raises `AccountUnusable` if a folder itself is closed to the account, OSError if mounts are not possible.
    """
    names = {folder: folder.resolve() for folder in folders}
    needed = _outermost(names.values())
    above = any(folder.is_relative_to(working) for folder in needed)
    wanted = needed if above else _outermost([*needed, working])
    barriers = {folder: barrier for folder in wanted if (barrier := _barrier(folder, account)) is not None}
    if barriers:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        keep_mounts_to_ourselves()
        for barrier in set(barriers.values()):
            _hide_all_but([folder for folder, its in barriers.items() if its == barrier], barrier)
        for name, folder in sorted(names.items()):
            if not name.exists():  # its way was a symbolic link
                name.parent.mkdir(parents=True, exist_ok=True)
                name.symlink_to(folder)
    for folder in needed:
        with _seen_by(account):
            usable = os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
        if not usable or barriers.get(folder) == folder:  # the latter is hidden now
            raise AccountUnusable(f"{folder} is closed to the account {account.name}", f"chmod -R a+rX {folder}")


def _hide_all_but(folders: Iterable[Path], barrier: Path) -> None:
    opened = {folder: os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in folders}
    mount("none", barrier, "tmpfs", data="size=1m,mode=755")
    for folder, descriptor in opened.items():
        if folder != barrier:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            mount(f"/proc/self/fd/{descriptor}", folder, flags=MS_BIND | MS_REC)
        os.close(descriptor)
