"""A bundle that carries its own Python: small, and nothing that runs on a node lacks a part of the standard library."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from bundle_site import FETCH, must_have_fetched, told_of

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed.gateway import SiteGateway

#: HTCondor's own modules come along only if they are asked for.
ELSEWHERE = {"classad2"}

#: Imports each of the modules that are named on the standard input, and says what went wrong with which.
IMPORT = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps([sys.prefix, failed]))
"""

#: What an interpreter of few parts may be without: cryptography, names that are no ASCII, databases, other packers.
USES = """
import asyncio, base64, bz2, ctypes, decimal, hashlib, json, lzma, sqlite3, ssl, sys, tarfile, unicodedata, zlib
assert sys.flags.utf8_mode
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
assert "münchen.example".encode("idna") == b"xn--mnchen-3ya.example"
context = ssl.create_default_context()
context.minimum_version = ssl.TLSVersion.TLSv1_3
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
try:
    context.wrap_bio(incoming, outgoing, server_hostname="gateway.example").do_handshake()
except ssl.SSLWantReadError:
    assert outgoing.read()[:1] == b"\\x16"
with sqlite3.connect(":memory:") as database:
    database.execute("CREATE TABLE jobs (name TEXT PRIMARY KEY, bytes INTEGER) STRICT")
    database.execute("INSERT INTO jobs VALUES ('1.0', 5) ON CONFLICT DO NOTHING")
    assert database.execute("SELECT json_extract('{\\"a\\": 7}', '$.a'), sum(bytes) FROM jobs").fetchone() == (7, 5)
for packer in (bz2, lzma, zlib):
    assert packer.decompress(packer.compress(b"x" * 1000)) == b"x" * 1000
assert asyncio.run(asyncio.sleep(0, "done")) == "done"
assert ctypes.CDLL(None).getpid() > 0
print("ok")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "htcondor-vpn.bundle"
    build(path, [], with_python=True)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Where it is unpacked, in a place that has a blank; and no Python of the node's."""
    tmp = tmp_path_factory.mktemp("cache") / "the cache"
    tmp.mkdir(mode=0o700)
    return {"HTVPN_CACHE": str(tmp), "HTVPN_PYTHON": "/bin/false"}


@pytest.fixture(scope="module")
def unpacked(site, made, environment):
    return Path(site.node.run([str(made), "--unpack"], env=environment, check=True).stdout.strip())


@pytest.fixture(scope="module")
def python(site, unpacked):
    """Runs code by the bundle's Python, and returns what it printed."""

    def python(code, *words, stdin=""):
        argv = [str(unpacked / "python/bin/python3"), "-BISXutf8", "-c", code, *words]
        return site.node.run(argv, stdin=stdin, check=True).stdout

    return python


@pytest.fixture(scope="module")
def import_all(python, unpacked):
    """Imports modules by the bundle's Python, and returns what went wrong with which."""

    def import_all(names):
        prefix, failed = json.loads(python(IMPORT, str(unpacked / "app"), stdin=json.dumps(sorted(names))))
        assert prefix == str(unpacked / "python")
        return failed

    return import_all


def test_it_is_small(made):
    assert made.stat().st_size < 8e6


def test_every_module_of_the_standard_library_that_came_along_finds_what_it_imports(import_all, unpacked):
    library = next((unpacked / "python/lib").glob("python3.*"))
    files = [path.relative_to(library) for path in library.rglob("*.pyc")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    names |= {path.name.partition(".")[0] for path in library.glob("lib-dynload/*.so")}
    assert len(names) > 150
    assert import_all(names) == {}


def test_every_module_of_ours_can_be_imported(import_all, unpacked):
    names = modules(unpacked / "app")
    assert len(names) > 150
    failed = {name: error for name, error in import_all(names).items() if not any(word in error for word in ELSEWHERE)}
    assert failed == {}


def test_what_they_import_only_when_it_is_needed_is_there_as_well(import_all, unpacked):
    imported = set()
    for path in (unpacked / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module)
    standard = {name for name in imported if is_standard(name.partition(".")[0])}
    assert len(standard) > 50
    assert import_all(standard) == {}


def is_standard(name):
    """Whether this Python has a module of that name in its standard library."""
    found = importlib.util.find_spec(name)
    return found is not None and (
        found.origin in ("built-in", "frozen") or Path(found.origin).is_relative_to(sysconfig.get_path("stdlib"))
    )


def modules(app):
    files = [path.relative_to(app) for path in (app / "htcondor_vpn").rglob("*.py") if path.name != "__main__.py"]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}


def test_the_interpreter_has_its_compiled_parts(python):
    assert python(USES).strip() == "ok"


@pytest.mark.parametrize("encoding", ["EUC-JP", "ISO-8859-15"])
def test_in_a_locale_whose_encoding_did_not_come_along(site, made, environment, tmp_path, encoding):
    if not Path("/usr/share/i18n/charmaps").is_dir() or not shutil.which("localedef"):
        pytest.skip("no locale can be made here: there are no descriptions of them (Debian: locales)")
    locale = ["localedef", "--no-archive", "-i", "ja_JP" if encoding == "EUC-JP" else "de_DE", "-f", encoding]
    subprocess.run([*locale, str(tmp_path / "some")], check=True, capture_output=True, timeout=60)
    locale = {"LOCPATH": str(tmp_path), "LC_ALL": "some"}
    said = site.node.run(["locale", "charmap"], env=locale, check=True).stdout
    assert said.strip() == encoding
    done = site.node.run([str(made), "config", "check"], env={**environment, **locale})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_tunnel_by_nothing_of_the_nodes_python(site, services, made, environment, tmp_path):
    with SiteGateway(site.dmz, tmp_path) as gateway:
        script = f"cat /proc/$PPID/cmdline | tr '\\0' '\\n' | head -n 1; {FETCH}"
        argv = [str(made), "run", *map(str, told_of(gateway)), "--", "bash", "-c", script]
        done = site.node.run(argv, env={**environment, "TMPDIR": "/tmp"})
    must_have_fetched(done)
    assert done.stdout.startswith(environment["HTVPN_CACHE"])
