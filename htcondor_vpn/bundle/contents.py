"""What goes into a bundle: our package and its pure-Python needs, a Python, and helpers."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import htcondor_vpn
from htcondor_vpn.bundle.programs import LIBRARIES, LOADER, Relocated
from htcondor_vpn.errors import ProgramMissing, UsageError
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.shipped import CONDOR_CONFIG, GLIDEIN_SCRIPTS, shipped

#: What pilots need of the network's libraries; other rooms and nouns are a gateway's, root's or the testbed's.
REQUIREMENTS = "asn1crypto", "h11"
_ELSEWHERE = re.compile(
    r"(gateway|packet_gateway|execution_point|testbed|bundle|cli/(gateway\w*|execution_point|demo|testbed|bundle)\.py)"
    r"(/|$)"
)

#: The name of a bundle's own Python, below its folder.
PYTHON = "python/bin/python3"

#: What nobody uses on a node, of the standard library and of its compiled parts.
_UNUSED = re.compile(
    r"(test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data|distutils|venv|wsgiref|xmlrpc|curses|dbm"
    r"|unittest|msilib|config-.*|dist-packages|site-packages|__pycache__|LICENSE\.txt|EXTERNALLY-MANAGED"
    r"|html|.*\.(exe|pickle|bat)"
    r"|(turtle|sitecustomize|pydoc|doctest|aifc|antigravity|asynchat|asyncore|cProfile|cgi|cgitb|chunk|crypt|ftplib|imaplib"
    r"|imghdr|mailbox|mailcap|modulefinder|nntplib|pdb|pickletools|poplib|profile|pstats|pyclbr|smtpd|smtplib|sndhdr|sunau"
    r"|telnetlib|this|trace|wave|webbrowser|xdrlib|zipapp|_aix_support|_osx_support|_pyio)\.py)"
)
_UNUSED_COMPILED = re.compile(
    r"_?(dbm|gdbm|tkinter|curses|curses_panel|codecs_\w+|multibytecodec|crypt|uuid|test\w*|xx\w*|ctypes_test|lsprof"
    r"|zoneinfo|readline|nis|ossaudiodev|audioop)\..*"
)

_MAIN = '''"""A bundle's entry point: `python3 -IS app NOUN …`. Programs that came along win over the node's."""

import sys
from pathlib import Path

from htcondor_vpn.cli.main import main
from htcondor_vpn.linux.programs import prefer

prefer(Path(__file__).resolve().parents[1] / "bin")
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
        try:
            files = distribution(requirement).files or []
        except PackageNotFoundError as error:
            cause = f"the Python package {requirement} is not installed here"
            raise UsageError(cause, f"pip install {requirement}") from error
        for file in files:
            if file.suffix == ".py" and "tests" not in file.parts:
                _copy(Path(str(file.locate())), app / str(file))
    (app / "__main__.py").write_text(_MAIN)


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


def needed_to_unpack(folder: Path) -> set[Path]:
    """The files that the Python in `folder` needs to run `unpack.py`, which unpacks all others."""
    code = (
        "for module in list(sys.modules.values()): print(getattr(module, '__file__', None) or '')\n"
        "print(open('/proc/self/maps').read())"
    )
    found = {Path(word) for word in _unpackers_python(folder, code).split() if word.startswith(f"{folder}/")}
    # Modules that are frozen into the interpreter name their source; by os.pyc it finds where it is.
    compiled = {path.with_suffix(".pyc") for path in found if path.suffix == ".py"}
    return found | compiled | set((folder / "python/lib").glob("*/encodings/*"))


def check_python(folder: Path) -> None:
    """Raises `ProgramMissing` if the Python in `folder` cannot unpack, or uses another one's library."""
    said = _unpackers_python(folder, "print(sys.prefix)").strip()
    if said != str(folder / "python"):
        raise ProgramMissing(
            f"{sys.executable} does not find its library elsewhere", "make the bundle with another one"
        )


def _unpackers_python(folder: Path, code: str) -> str:
    """What `code` prints where `unpack` has been imported, by the Python in `folder`."""
    start = "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import unpack, lzma\n"
    loader = [str(folder / LOADER), "--library-path", str(folder / LIBRARIES)]
    return run_program([*loader, str(folder / PYTHON), "-IS", "-c", start + code, str(folder)])


def is_used(path: Path) -> bool:
    """Whether a bundle gets the file `path` of the standard library; relative to that."""
    if path.parent.name == "lib-dynload" and _UNUSED_COMPILED.fullmatch(path.name):
        return False
    return not any(_UNUSED.fullmatch(part) for part in path.parts)


def _precompile(library: Path) -> None:
    """Replaces the sources by what this very Python makes of them, which is the same for the same sources."""
    code = (
        "import compileall, py_compile, sys; "
        "sys.exit(not compileall.compile_dir(sys.argv[1], ddir=sys.argv[2], quiet=2, legacy=True,"
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


#: What adds each helper, and returns its version.
HELPERS: dict[str, Callable[[Relocated], str]] = {
    "nft": _nft, "iptables": _iptables, "wireguard-go": _wireguard_go, "openconnect": _openconnect,
}  # fmt: skip


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "?"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
