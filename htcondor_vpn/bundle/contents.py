"""What goes into a bundle: our package and its pure-Python needs, a Python, and helpers."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

import htcondor_vpn
from htcondor_vpn.bundle.programs import LIBRARIES, LOADER, Relocated
from htcondor_vpn.bundle.unpack import USED
from htcondor_vpn.errors import ProgramMissing, UsageError
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.shipped import CONDOR_CONFIG, GLIDEIN_SCRIPTS, shipped

#: What pilots need of the network's libraries; other rooms and nouns are a gateway's, root's or the testbed's.
REQUIREMENTS = "asn1crypto", "h11"
_ELSEWHERE = re.compile(
    r"(gateway|packet_gateway|execution_point|testbed|bundle|cli/(gateway\w*|execution_point|demo|testbed|bundle)\.py)"
    r"(/|$)"
)

#: What of HTCondor's package a policy needs.
_HTCONDOR = "classad2", "htcondor2", "htcondor.libs"

#: The name of a bundle's own Python, below its folder.
PYTHON = "python/bin/python3"

#: The name of the program that unpacks the rest of such a bundle, and of that.
XZ = "libexec/xz"
PACKED = "packed.tar.xz"

#: What a Python that is taken along has to have, of what some builds of it are without.
_NEEDED = "asyncio", "bz2", "ctypes", "decimal", "hashlib", "lzma", "mmap", "sqlite3", "ssl", "unicodedata", "zlib"
_ANOTHER = "have the bundle made by another Python"

#: What nobody uses on a node, of the standard library: modules and packages of it, parts of packages, compiled modules,
#: and what is no module. What is left has to find all that it imports.
_UNUSED = re.compile(
    r"__hello__|__phello__|_aix_support|_bootsubprocess|_distutils_system_mod|_markupbase|_osx_support|_pydecimal"
    r"|_pyio|aifc|antigravity|asynchat|asyncore|bdb|cProfile|cgi|cgitb|chunk|cmd|code|codeop|colorsys|compileall"
    r"|configparser|crypt|csv|curses|dbm|distutils|doctest|email|ensurepip|filecmp|fileinput|ftplib|getopt|graphlib"
    r"|html|http|idlelib|imaplib|imghdr|imp|lib2to3|mailbox|mailcap|mimetypes|modulefinder|msilib|multiprocessing"
    r"|netrc|nntplib|nturl2path|optparse|pdb|pickletools|pipes|plistlib|poplib|profile|pstats|pty|py_compile|pyclbr"
    r"|pydoc|pydoc_data|quopri|rlcompleter|sched|shelve|sitecustomize|smtpd|smtplib|sndhdr|socketserver|statistics"
    r"|sunau|symtable|sysconfig|tabnanny|telnetlib|test|this|timeit|tkinter|tomllib|trace|tty|turtle|turtledemo"
    r"|unittest|uu|uuid|venv|wave|webbrowser|wsgiref|xdrlib|xmlrpc|zipapp|zipfile|zoneinfo"
)
_UNUSED_PARTS = re.compile(
    r"(asyncio/(__main__|windows_\w+)|concurrent/futures/process|ctypes/(_aix|wintypes)|importlib/(metadata/.*|readers|resources/readers)"
    r"|json/tool|logging/(config|handlers)|urllib/(error|request|response|robotparser)"
    r"|xml/(dom|etree|parsers)/.*|xml/sax/(expatreader|saxutils))\.py"
)
_UNUSED_COMPILED = re.compile(
    r"_?(dbm|gdbm|tkinter|curses|curses_panel|codecs_\w+|multibytecodec|crypt|uuid|test\w*|xx\w*|ctypes_test|lsprof"
    r"|zoneinfo|readline|nis|ossaudiodev|audioop|multiprocessing|posixshmem)\..*"
)
_NO_MODULES = re.compile(
    r"tests?|ctypes_?test\w*|macholib|config-.*|_sysconfigdata_.*|(dist|site)-packages|__pycache__|LICENSE\.txt"
    r"|EXTERNALLY-MANAGED|.*\.(exe|pickle|bat)"
)

#: The encodings that are left. That of the locale is none of them: the interpreter does not use it (-X utf8).
_ENCODINGS = re.compile(
    r"(__init__|aliases|ascii|charmap|idna|latin_1|punycode|undefined|(raw_)?unicode_escape|utf_\w+)\.py"
)

_MAIN = '''"""A bundle's entry point: `python3 -IS app NOUN …`. Programs that came along win over the node's."""

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.cli.main import main
from htcondor_vpn.linux.programs import prefer

folder = Path(__file__).resolve().parents[1]
with suppress(OSError):  # no other version shall take this one for one that nobody uses
    used = os.open(folder.with_name("@used@" + folder.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.utime(used)
    fcntl.flock(used, fcntl.LOCK_SH | fcntl.LOCK_NB)
with suppress(OSError):  # nor what clears /tmp: systemd-tmpfiles(8) leaves a folder alone that is locked
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH | fcntl.LOCK_NB)
prefer(folder / "bin")
sys.exit(main())
'''


def add_package(folder: Path) -> None:
    """Copies our package for pilots, and what it requires, to `app/`; raises `UsageError`."""
    app = folder / "app"
    own = Path(htcondor_vpn.__file__).parent
    for path in sorted(own.rglob("*")):
        name = path.relative_to(own).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and not _ELSEWHERE.match(name):
            _copy(path, app / "htcondor_vpn" / name)
    for requirement in REQUIREMENTS:
        for file in _files_of(requirement):
            if file.suffix == ".py" and "tests" not in file.parts:
                _copy(Path(str(file.locate())), app / str(file))
    (app / "__main__.py").write_text(_MAIN.replace("@used@", USED))


def add_shipped(folder: Path) -> None:
    """Copies what starts glideins to `glidein/`, and HTCondor's configuration to where `shipped` finds it.

    Raises `ConfigUnreadable`.
    """
    for script in sorted(shipped(GLIDEIN_SCRIPTS).iterdir()):
        _copy(script, folder / "glidein" / script.name)
        (folder / "glidein" / script.name).chmod(0o755)
    for file in sorted(shipped(CONDOR_CONFIG).iterdir()):
        _copy(file, folder / "app" / CONDOR_CONFIG / file.name)


def versions() -> dict[str, str]:
    """The version of each Python package inside."""
    return {name: distribution(name).version for name in ("htcondor-vpn", *REQUIREMENTS)}


def add_python(relocated: Relocated) -> str:
    """Adds the Python that runs this, without what no pilot needs; returns its version."""
    program = Path(sys.executable).resolve()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(sysconfig.get_path("stdlib"))
    target = relocated.folder / "python/lib" / version
    for path in sorted(library.rglob("*")):
        if path.is_file() and is_used(path.relative_to(library)):
            _copy(path, target / path.relative_to(library))
    compiled = sorted((target / "lib-dynload").glob("*.so"))
    relocated.add_program(program, PYTHON)
    relocated.add_libraries_of(compiled)
    _precompile(target)
    return ".".join(map(str, sys.version_info[:3]))


def add_xz(relocated: Relocated) -> None:
    """Adds the program that unpacks what is packed."""
    relocated.add_program(Path(find_program("xz", "xz-utils")), XZ)


def check_python(folder: Path) -> None:
    """Raises `ProgramMissing` if the Python in `folder` lacks something, or uses another one's library."""
    argv = [str(folder / LOADER), "--library-path", str(folder / LIBRARIES), str(folder / PYTHON), "-BISXutf8", "-c"]
    try:
        said = run_program([*argv, f"import sys, {', '.join(_NEEDED)}; print(sys.prefix)"]).strip()
    except ProgramFailed as error:
        raise ProgramMissing(f"{sys.executable} cannot be taken along: {error}", _ANOTHER) from error
    if said != str(folder / "python"):
        raise ProgramMissing(f"{sys.executable} does not find its library elsewhere", _ANOTHER)


def is_used(path: Path) -> bool:
    """Whether a bundle gets the file `path` of the standard library; relative to that."""
    if path.parent.name == "lib-dynload":
        return not _UNUSED_COMPILED.fullmatch(path.name)
    if path.parent.name == "encodings":
        return bool(_ENCODINGS.fullmatch(path.name))
    if _UNUSED.fullmatch(path.parts[0].partition(".")[0]) or _UNUSED_PARTS.fullmatch(path.as_posix()):
        return False
    return not any(_NO_MODULES.fullmatch(part) for part in path.parts)


def _precompile(library: Path) -> None:
    """Replaces the sources by what this very Python makes of them, which is the same for the same sources.

    Without descriptions, which nobody reads there, it is a fifth smaller.
    """
    code = (
        "import compileall, py_compile, sys; "
        "sys.exit(not compileall.compile_dir(sys.argv[1], ddir=sys.argv[2], quiet=2, legacy=True, optimize=2,"
        " invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH))"
    )
    run_program([sys.executable, "-IS", "-c", code, str(library), library.name], timeout_seconds=300)
    for source in library.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()


def _nft(relocated: Relocated) -> str:
    program = Path(find_program("nft", "nftables"))
    relocated.add_program(program, "bin/nft")
    return _first_number(run_program([str(program), "--version"]))


def _iptables(relocated: Relocated) -> str:
    relocated.add_xtables()
    return _first_number(run_program([find_program("iptables-nft-restore", "iptables"), "--version"]))


def _wireguard_go(relocated: Relocated) -> str:
    program = Path(find_program("wireguard-go"))
    relocated.add_program(program, "bin/wireguard-go")
    return _first_number(run_program([str(program), "--version"]))


def _openconnect(relocated: Relocated) -> str:
    program = Path(find_program("openconnect"))
    needed = run_program([str(relocated.folder / LIBRARIES / "loader"), "--list", str(program)])
    found = re.search(r"(libopenconnect\.so\.5) => (\S+)", needed)
    if not found:
        raise ProgramMissing(f"{program} is not linked to libopenconnect", "have the bundle made without openconnect")
    relocated.add_library(Path(found[2]), f"{LIBRARIES}/{found[1]}")
    relocated.add_libraries_of([Path(found[2])])
    return _first_number(run_program([str(program), "--version"]))


def _htcondor(relocated: Relocated) -> str:
    """HTCondor's modules of Python, which are the same for all versions of Python, and bring libraries of their own."""
    app = relocated.folder / "app"
    for file in _files_of("htcondor"):
        if file.parts[0] in _HTCONDOR and "__pycache__" not in file.parts:
            _copy(Path(str(file.locate())), app / str(file))
    relocated.add_loader(Path(sys.executable).resolve())
    relocated.add_libraries_of(sorted(app.glob("*/*.so")))
    return distribution("htcondor").version


#: What adds each helper, and returns its version.
HELPERS: dict[str, Callable[[Relocated], str]] = {
    "nft": _nft, "iptables": _iptables, "wireguard-go": _wireguard_go, "openconnect": _openconnect,
    "htcondor": _htcondor,
}  # fmt: skip


def _files_of(package: str) -> Sequence[PackagePath]:
    """The files of a Python package; raises `UsageError` where it is not installed."""
    try:
        return distribution(package).files or []
    except PackageNotFoundError as error:
        raise UsageError(f"the Python package {package} is not installed here", f"pip install {package}") from error


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "?"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
