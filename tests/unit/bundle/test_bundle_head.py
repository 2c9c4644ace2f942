"""The script at a bundle's head: where it unpacks what is behind it, what it refuses, and what it says of itself."""

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from htcondor_vpn.bundle import unpack
from htcondor_vpn.bundle.contents import is_used

FOLDER = f"htvpn-cache-{os.getuid()}"


def cached(above):
    return sorted(path.name for path in above.glob("htvpn-cache-*/[0-9]*"))


@pytest.mark.parametrize("shell", [(), ("sh",), ("bash", "--posix")])
def test_a_noun_is_what_the_installed_command_does(bundle, shell):
    done = bundle.run("config", "check", shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there are no configuration files" in done.stdout


def test_an_error_and_its_code_are_the_commands_own(bundle):
    done = bundle.run("run", "--", "true")
    assert done.returncode == 78
    assert "no gateway is configured" in done.stderr


def test_nouns_that_a_node_has_no_use_for_are_left_out(bundle):
    said = bundle.run("config", "--help").stdout + bundle.run("gateway").stderr
    assert "invalid choice: 'gateway'" in said


def test_its_folder_is_not_taken_for_a_pilots(bundle):
    assert "no pilot of yours was found" in bundle.run("status").stdout


def test_without_arguments_it_says_how_it_is_used(bundle):
    done = bundle.run()
    assert done.returncode == 64
    assert "--verify" in done.stderr


def test_the_umask_is_the_callers_again(bundle):
    script = f"umask 027; {bundle.path} run --gateway 127.0.0.1:1 -- true; umask"
    bundle.unpack()
    done = subprocess.run(["sh", "-c", script], env=bundle.environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("027")


def test_a_later_start_uses_what_the_first_has_unpacked(bundle, tmp_path):
    folder = bundle.unpack()
    assert folder.parent == tmp_path / "tmp" / FOLDER
    before = (folder / "count").stat().st_ctime_ns
    assert bundle.unpack() == folder
    assert (folder / "count").stat().st_ctime_ns == before
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_compiled_meanwhile_does_not_count(bundle):
    folder = bundle.unpack()
    bundle.run("config", "check")
    assert list(folder.rglob("__pycache__/*.pyc"))
    before = folder.stat().st_ino
    assert bundle.unpack().stat().st_ino == before


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def remove(path):
    path.unlink()


def empty(path):
    os.truncate(path, 0)


def add(path):
    path.with_name("more").touch()


@pytest.mark.parametrize("of", ["app/htcondor_vpn/errors.py", "app/__main__.py", "count"])
@pytest.mark.parametrize("what", [remove, empty, add])
def test_what_was_removed_or_cut_is_put_back_where_a_pilot_may_be_running(bundle, of, what):
    """By what clears /tmp, or by a crash of the node before all was written. The other files stay what they are."""
    folder = bundle.unpack()
    before, place = files(folder), folder.stat().st_ino
    numbers = {path: path.stat().st_ino for path in before}
    what(folder / of)
    assert bundle.unpack() == folder
    assert (files(folder), folder.stat().st_ino) == (before, place)
    changed = {path for path, number in numbers.items() if path.stat().st_ino != number}
    assert changed <= {folder / of, folder / "count"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_many_at_once_mend_one_folder(bundle, tmp_path):
    folder = bundle.unpack()
    before = files(folder)
    for path in list(before)[::7]:
        empty(path)
    shutil.rmtree(folder / "app/h11")
    argv = bundle.argv("config", "check")
    processes = [subprocess.Popen(argv, env=bundle.environment, stdout=subprocess.DEVNULL) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert files(folder) == before


def test_in_another_language(bundle):
    """Where wc(1) calls the sum something else."""
    folder = bundle.unpack()
    before = (folder / "count").stat().st_ino
    (folder.parents[1] / "wc").write_text("#!/bin/sh\n/usr/bin/wc \"$@\" | sed 's/ total$/ insgesamt/'\n")
    (folder.parents[1] / "wc").chmod(0o755)
    assert bundle.unpack(PATH=f"{folder.parents[1]}:{os.environ['PATH']}") == folder
    assert (folder / "count").stat().st_ino == before


@pytest.mark.parametrize("name", ["TMPDIR", "HTVPN_CACHE"])
def test_a_folder_that_is_named_from_the_current_one(bundle, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "mine" in bundle.unpack(**{name: "mine"}).parents


def test_what_others_remove_at_the_same_time_is_no_obstacle(bundle, monkeypatch):
    folder = bundle.unpack()
    names = ".new.one", "0.0.9-0123456789abcdef", "0.0.8-0123456789abcdef"
    gone = [folder.with_name(name) for name in names]
    monkeypatch.setattr(unpack.Path, "iterdir", lambda _: iter(gone))
    unpack._remove_leftovers(folder.parent, folder)


def test_without_locks_nothing_is_removed_that_may_run(bundle, monkeypatch):
    """As on a shared file system that is mounted without them."""

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    folder = bundle.unpack()
    other = folder.with_name("0.0.9-0123456789abcdef")
    other.mkdir()
    os.utime(other, (0, 0))
    monkeypatch.setattr(unpack.fcntl, "flock", no_locks)
    unpack._remove_leftovers(folder.parent, folder)
    assert other.exists()


def test_many_at_once_unpack_one_folder(bundle, tmp_path):
    argv = bundle.argv("--unpack")
    processes = [subprocess.Popen(argv, env=bundle.environment, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert len(said) == 1
    assert cached(tmp_path / "tmp") == [Path(said.pop().strip()).name]


def test_one_that_is_killed_leaves_nothing_that_counts(bundle, tmp_path):
    process = subprocess.Popen(
        bundle.argv("--unpack"), env=bundle.environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not list((tmp_path / "tmp").glob("*/.new.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)  # and what it has unpack, which would go on
    process.wait()
    folder = bundle.unpack()
    assert (folder / "app/__main__.py").exists()
    for leftover in folder.parent.glob(".new.*"):
        os.utime(leftover, (0, 0))
    shutil.rmtree(folder)
    bundle.unpack()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("used", ["long ago", "lately", "still"])
def test_other_versions_that_nobody_uses_are_removed(bundle, tmp_path, used):
    """The other one is this very bundle, under another version's name."""
    folder = bundle.unpack()
    other = folder.with_name("0.0.9-0123456789abcdef")
    folder.rename(other)
    program = [sys.executable, "-ISXutf8", str(other / "app"), "config", "check"]
    subprocess.run(program, check=True, capture_output=True, timeout=60)
    mark = other.with_name(f".used.{other.name}")
    assert mark.exists()
    with mark.open() as running:
        if used == "still":
            fcntl.flock(running, fcntl.LOCK_SH)
        for path in (other, mark):
            os.utime(path, (0, 0) if used != "lately" else None)
        bundle.unpack()
    assert (other.exists(), mark.exists()) == ((False, False) if used == "long ago" else (True, True))
    assert not list(folder.parent.glob(".new.*"))


def test_a_version_says_for_as_long_as_it_runs_that_it_is_used(bundle):
    folder = bundle.unpack()
    mark = folder.with_name(f".used.{folder.name}")
    bundle.run("config", "check")
    before = mark.stat().st_mtime_ns
    bundle.run("config", "check")
    assert mark.stat().st_mtime_ns > before
    module = folder / "app/htcondor_vpn/cli/status.py"
    code = "import sys\ndef add_arguments(parser): pass\ndef run(args): print('runs', flush=True); sys.stdin.read()\n"
    module.write_text(code.ljust(module.stat().st_size))
    argv = bundle.argv("status")
    with subprocess.Popen(
        argv, env=bundle.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process, mark.open() as file:
        assert process.stdout.readline() == "runs\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        what_clears_tmp = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(what_clears_tmp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(what_clears_tmp)


@pytest.mark.parametrize("kind", ["link", "writable", "file"])
def test_what_lies_there_already_and_is_not_safe_is_not_used(bundle, tmp_path, kind):
    theirs = tmp_path / "tmp" / FOLDER
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if kind == "link":
        theirs.symlink_to(elsewhere)
    elif kind == "file":
        theirs.touch()
    else:
        theirs.mkdir()
        theirs.chmod(0o777)
    folder = bundle.unpack()
    assert re.fullmatch(rf"{FOLDER}\.\w{{6}}", folder.parent.name)
    assert folder.parents[1] == tmp_path / "tmp"
    assert not list(elsewhere.iterdir())
    assert bundle.unpack() == folder, "the other folder is found again"


def test_a_folder_that_was_named_is_the_only_one(bundle, tmp_path):
    assert bundle.unpack(HTVPN_CACHE=tmp_path / "mine").parent == tmp_path / "mine"
    done = bundle.run("--unpack", HTVPN_CACHE="/proc/mine")
    assert done.returncode == 74
    assert "HTVPN_CACHE" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_was_named_and_is_not_safe_is_refused(bundle, tmp_path, mode):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(mode)
    before = sorted(tmp_path.iterdir())
    assert bundle.run("--unpack", HTVPN_CACHE=tmp_path / "mine").returncode == 74
    assert sorted(tmp_path.iterdir()) == before


def test_every_module_inside_can_be_imported(bundle):
    """Each must find what it imports among what a node gets; HTCondor's own Python modules come with HTCondor.

    A Python that goes along has to have what they use of the standard library.
    """
    app = bundle.unpack() / "app"
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import htcondor_vpn\n"
        "for module in pkgutil.walk_packages(htcondor_vpn.__path__, 'htcondor_vpn.'):\n"
        "    try: importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name != 'classad2': raise\n"
        "for name, module in sorted(sys.modules.items()): print(name, getattr(module, '__file__', None), sep='\\t')\n"
    )
    argv = [sys.executable, "-ISB", "-c", code, str(app)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules = dict(line.split("\t") for line in done.stdout.splitlines())
    assert sum(name.startswith("htcondor_vpn.") for name in modules) > 100
    library = Path(sysconfig.get_path("stdlib"))
    loaded = [Path(file) for file in modules.values() if Path(file).is_relative_to(library)]
    assert len(loaded) > 100
    assert [path for path in loaded if not is_used(path.relative_to(library))] == []


def test_a_folder_with_blanks_in_its_name(bundle, tmp_path):
    assert bundle.unpack(TMPDIR=tmp_path / "t m p'$x").parents[1] == tmp_path / "t m p'$x"


def test_a_bundle_that_was_cut_is_not_run(bundle, tmp_path):
    cut = tmp_path / "cut"
    content = bundle.path.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    cut.chmod(0o755)
    for words in (["--verify"], ["config", "check"]):
        done = bundle._replace(path=cut).run(*words)
        assert done.returncode == 65
        assert "damaged" in done.stderr
    assert not cached(tmp_path / "tmp")


def test_a_node_without_python(bundle):
    done = bundle.run("config", "check", HTVPN_PYTHON="/bin/true-not /bin/false")
    assert done.returncode == 72
    assert "--with-python" in done.stderr


def test_it_says_what_is_inside(bundle):
    said = bundle.run("--version").stdout
    assert re.match(r"htcondor-vpn \d.*asn1crypto \d.*h11 \d.*sha256 [0-9a-f]{64}$", said)
