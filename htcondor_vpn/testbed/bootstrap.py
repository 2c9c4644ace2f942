"""The set-up of a fresh Debian machine for the demo, the tests and the benchmarks: what `make` calls before all else.

It runs under Debian's own Python and needs the standard library only. Each step looks first whether there is anything
to do, so that a second run takes no time and an interrupted one is taken up where it broke off. Only root installs
packages, makes the ordinary account and mends /dev/net/tun; files in the checkout are made by the checkout's owner.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from htcondor_vpn.testbed.account import NAME as ACCOUNT
from htcondor_vpn.testbed.debian_packages import (
    BENCHMARK_PACKAGES,
    DEBOOTSTRAP_PACKAGES,
    PACKAGES,
    end_policy,
    install,
    missing_packages,
)
from htcondor_vpn.testbed.steps import CHECKOUT, SetUpFailed, identity, owner, say, step

PYTHON = "/usr/bin/python3"
VENV = CHECKOUT / ".venv"
STAMP = VENV / "set-up-stamp"

# What else only root can do


def make_account() -> None:
    """Makes the ordinary account that root becomes for everything that claims to need no privilege."""
    if os.environ.get("SUDO_UID", "0") != "0":
        return  # it will be the caller of sudo
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        argv = ["useradd", "--system", "--create-home", "--shell", "/bin/sh", ACCOUNT]
        step(f"making the account {ACCOUNT}, as which root runs what needs no privilege", argv)


def make_tun_usable(path: Path = Path("/dev/net/tun")) -> None:
    """Makes /dev/net/tun and lets everyone use it, as udev does; a user can make devices in own namespaces only."""
    try:
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
            say(f"made {path}")
        if path.stat().st_mode & 0o666 != 0o666:
            path.chmod(0o666)
            say(f"made {path} usable for everyone (0666)")
    except OSError as error:
        say(f"{path} cannot be made usable: {error.strerror}")


def make_readable() -> None:
    """Opens root's own checkout for reading: an umask of 077 has closed it to the ordinary account."""
    needed = (CHECKOUT, *CHECKOUT.glob("[!.]*"), *CHECKOUT.glob("[!.]*/**/*"))
    closed = any(not path.lstat().st_mode & 0o004 for path in needed if "__pycache__" not in path.parts)
    if owner() == 0 and closed:
        argv = ["chmod", "-R", "a+rX", str(CHECKOUT)]
        step(f"making {CHECKOUT} readable, since root runs the programs in it as {ACCOUNT}", argv)


# The Python environment


def venv_stamp() -> str:
    """What the Python environment was made from: it is made anew or brought up to date when this changes."""
    digest = hashlib.sha256(f"{VENV} {sys.version}".encode())
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((CHECKOUT / name).read_bytes())
    return digest.hexdigest()


def venv_is_ready() -> bool:
    """Whether the Python environment is complete and up to date."""
    try:
        return STAMP.read_text() == venv_stamp() and (VENV / "bin/python").exists()
    except OSError:
        return False


def make_venv() -> None:
    """Makes the Python environment, or brings it up to date; raises `SetUpFailed`."""
    if os.geteuid() not in (0, owner()) and not os.access(CHECKOUT, os.W_OK):
        name = pwd.getpwuid(owner()).pw_name
        raise SetUpFailed(f"{CHECKOUT} is not yours to write in: run this as {name}, or in a clone of your own")
    if not STAMP.exists() or not (VENV / "bin/python").exists():
        # Whatever is there was interrupted, and pip trusts what it finds.
        shutil.rmtree(VENV, ignore_errors=True)
        step("making the Python environment .venv", [PYTHON, "-m", "venv", str(VENV)], as_owner=True)
    STAMP.unlink(missing_ok=True)
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    quiet = {"PIP_ROOT_USER_ACTION": "ignore"}
    step("installing the Python packages", [*pip, "-e", ".[test]"], as_owner=True, env=quiet)
    STAMP.write_text(venv_stamp())
    os.chown(STAMP, owner(), -1)


def set_up(
    suites: Sequence[str], benchmarks: bool, wireguard: bool = False, debootstrap: bool = False, apptainer: bool = False
) -> int:
    """Does whatever is missing and returns 0, or the exit code of a step that has told the user what is wrong.

    Raises `SetUpFailed` with the one line that says what the user can do.
    """
    root = os.geteuid() == 0
    more = {**(BENCHMARK_PACKAGES if benchmarks else {}), **(DEBOOTSTRAP_PACKAGES if debootstrap else {})}
    packages = missing_packages({**PACKAGES, **more})
    if packages and not root:
        raise SetUpFailed(
            f"these Debian packages are missing: {' '.join(packages)}; have an administrator run: "
            f"apt-get install --no-install-recommends {' '.join(packages)}"
        )
    if root:
        end_policy()
        if packages:
            install(packages)
        make_account()
        make_tun_usable()
        make_readable()
    elif not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise SetUpFailed("/dev/net/tun is not usable for you; have an administrator run: chmod 0666 /dev/net/tun")
    if not venv_is_ready():
        make_venv()
    fetched = [["condor_prefix", *suites]] if suites else []
    if wireguard:
        fetched.append(["wireguard_prefix"])
    if apptainer:
        fetched.append(["apptainer_prefix"])
    for module, *words in fetched:
        argv = [str(VENV / "bin/python"), "-m", f"htcondor_vpn.testbed.{module}", *words]
        if code := subprocess.run(argv, cwd=CHECKOUT, umask=0o022, check=False, **identity(True)).returncode:
            return code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Sets this machine up; returns 0, or another exit code after one line on stderr."""
    parser = argparse.ArgumentParser(prog="bootstrap", description="Sets a Debian machine up for demo and tests.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="the Debian suites whose HTCondor is needed")
    parser.add_argument("--benchmarks", action="store_true", help="what the benchmarks compare with, too")
    parser.add_argument("--wireguard", action="store_true", help="fetch wireguard-go, too")
    parser.add_argument("--apptainer", action="store_true", help="fetch Apptainer, too")
    parser.add_argument("--debootstrap", action="store_true", help="debootstrap, too")
    args = parser.parse_args(argv)
    lock = os.open(CHECKOUT, os.O_RDONLY)
    os.set_inheritable(lock, True)  # a step that outlives us, killed as we may be, is still to be waited for
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return set_up(args.suites, args.benchmarks, args.wireguard, args.debootstrap, args.apptainer)
    except SetUpFailed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run takes it up from here")
        return 130
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main())
