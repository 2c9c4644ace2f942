"""htvpn-launch on the simulated node: a glidein in the tunnel, from a factory entry's folder or by hand."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_site import FETCH, WANTED, full_disk

import htcondor_vpn
from htcondor_vpn.gateway.trust.tokens import TokenStore
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.host import outer_id
from htcondor_vpn.testbed.logs import wait_for_log

HERE = Path(__file__).parent
LAUNCHER = Path(htcondor_vpn.__file__).parents[1] / "glidein_scripts/htvpn-launch"


@pytest.fixture(scope="module")
def gateway(site, services, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def scratch(tmp_path, bundle, gateway):
    """A batch job's folder with what an entry has transferred: files without their modes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "htcondor-vpn.conf").write_text(
        f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
    )
    for source, name in (
        (LAUNCHER, "condor_exec.exe"), (bundle, "htcondor-vpn.bundle"), (gateway.token_file, "pilot.token"),
        (HERE / "glidein_startup.sh", "glidein_startup.sh"),
    ):  # fmt: skip
        shutil.copyfile(source, folder / name)
        (folder / name).chmod(0o644)
    (folder / "condor_exec.exe").chmod(0o755)
    return folder


@pytest.fixture
def start(site, scratch):
    """Starts the launcher on the node as a batch system does, and returns its process and its log."""
    processes = []

    def start(*words, launcher=("./condor_exec.exe",), **variables):
        log = scratch / "log"
        log.touch()
        environ = {"HTVPN_PYTHON": sys.executable, "TMPDIR": str(scratch), **variables}
        processes.append(site.node.start([*launcher, *words], log=log, cwd=scratch, env=environ))
        return processes[-1], log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def left_in(site, scratch):
    """The command lines of the node's processes that have to do with the folder."""
    found = []
    for pid in site.processes_of_node():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [line for line in found if os.fsencode(scratch) in line or b"glidein_startup.sh" in line]


def test_an_entrys_executable(start, scratch):
    process, log = start("-v", "std", "-quick", "-name", "a b", FETCH=FETCH)
    assert process.wait(90) == 5, log.read_text()
    lines = log.read_text().splitlines()
    assert lines == ["glidein: -v std -quick -name a b", str(outer_id("uid")), WANTED, "the token is there"]
    assert (scratch / "pilot.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["TERM", "QUIT"])
def test_a_signal_is_the_glideins_and_its_master_may_end(site, start, scratch, name):
    process, log = start("-v", "std")
    wait_for_log(log, b"^master runs$", process)
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.wait(60) == 7
    assert log.read_text().splitlines()[-2:] == [f"glidein got {name}", "master ended by QUIT"]
    assert left_in(site, scratch) == []


def test_a_master_that_does_not_end_is_killed(site, start, scratch):
    process, log = start("-v", "std", MASTER_ENDS_IN="1000", HTVPN_CLEANUP_SECONDS="1")
    wait_for_log(log, b"^master runs$", process)
    process.terminate()
    assert process.wait(60) == 7
    assert "master ended" not in log.read_text()
    assert left_in(site, scratch) == []


def test_several_on_one_node_share_what_is_unpacked(start, scratch):
    processes = [start("-quick", FETCH=FETCH)[0] for _ in range(4)]
    assert [process.wait(120) for process in processes] == [5] * 4, (scratch / "log").read_text()
    assert (scratch / "log").read_text().splitlines().count(WANTED) == 4
    assert len(list(scratch.glob("htvpn-cache-*/[0-9]*"))) == 1


@pytest.mark.parametrize("_", range(5))
def test_told_to_end_at_any_moment(site, start, scratch, _):
    seconds = random.uniform(0, 1.5)
    print(f"told to end after {seconds:.3f} s")
    process, log = start("-v", "std")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.terminate()
    assert process.wait(60) in (7, -signal.SIGTERM), log.read_text()
    # What unpacks may still finish, for the next one.
    wait_until("nothing is left", 60, lambda: True if left_in(site, scratch) == [] else None)
    left = [path.name for path in scratch.iterdir() if path.is_dir() and not path.name.startswith(("glide_", "htvpn-"))]
    assert left == []
    assert not list(scratch.glob("htvpn-cache-*/.new.*"))


def test_the_token_is_removed_when_asked_for(start, scratch):
    process, log = start("-quick", HTVPN_DELETE_TOKEN="1")
    assert process.wait(90) == 5, log.read_text()
    assert "token" not in log.read_text()
    assert not (scratch / "pilot.token").exists()


def test_any_command_by_hand_with_an_installed_program(start, scratch, tmp_path):
    """As GLIDEIN_MULTIGLIDEIN_LAUNCHER calls it: the script's path first."""
    program = tmp_path / "htcondor-vpn"
    program.write_text(f'#!/bin/sh\nexec {" ".join(vpn_command())} "$@"\n')
    program.chmod(0o755)
    words = [str(scratch / "glidein_startup.sh"), "-multirestart", "0", "-quick"]
    process, log = start(*words, launcher=[str(LAUNCHER)], HTVPN_BUNDLE=str(program))
    assert process.wait(90) == 5, log.read_text()
    assert log.read_text().startswith("glidein: -multirestart 0 -quick\n")


def test_the_launcher_inside_the_bundle(start):
    process, log = start("-quick", launcher=["sh", "htcondor-vpn.bundle", "launch"])
    assert process.wait(90) == 5, log.read_text()


def test_without_a_bundle_it_says_so(start, scratch):
    (scratch / "htcondor-vpn.bundle").unlink()
    process, log = start("-quick", PATH="/usr/bin:/bin")
    assert process.wait(90) == 72
    assert log.read_text().count("\n") == 1


def test_eight_glideins_on_one_node_and_each_ends_alone(site, start, scratch):
    processes = [start("-v", "std", FETCH=FETCH)[0] for _ in range(8)]
    log = scratch / "log"

    def run():
        return True if log.read_text().count("master runs") == 8 else None

    wait_until("all eight run", 120, run)
    assert log.read_text().splitlines().count(WANTED) == 8
    for process in processes:
        process.terminate()
        assert process.wait(90) == 7
    assert log.read_text().count("master ended by QUIT") == 8
    assert left_in(site, scratch) == []


def test_an_expired_token(start, scratch, gateway):
    tokens = TokenStore(gateway.state_folder)
    try:
        (scratch / "pilot.token").write_text(tokens.add("late", lifetime_seconds=0) + "\n")
    finally:
        tokens.close()
    process, log = start("-quick")
    assert process.wait(90) == 77, log.read_text()
    assert "glidein:" not in log.read_text()


@pytest.mark.parametrize("full", ["TMPDIR", "HTVPN_CACHE"])
def test_a_disk_that_is_full(site, start, scratch, tmp_path, full):
    for name in ("TMPDIR", "HTVPN_CACHE"):
        (tmp_path / name).mkdir()
    with full_disk(site.node, tmp_path / full):
        process, log = start("-quick", TMPDIR=str(tmp_path / "TMPDIR"), HTVPN_CACHE=str(tmp_path / "HTVPN_CACHE"))
        code = process.wait(90)
        if full == "TMPDIR":  # there are other places
            assert code == 5, log.read_text()
        else:
            assert code == 74, log.read_text()
            assert "unpacked nowhere" in log.read_text()
            assert log.read_text().count("\n") == 1
        assert left_in(site, scratch) == []


def test_without_a_tunnel_the_glidein_is_not_run(start, scratch):
    (scratch / "pilot.token").write_text("wrong\n")
    process, log = start("-quick")
    assert process.wait(90) == 77, log.read_text()
    assert "glidein:" not in log.read_text()


CVMFSEXEC = """#!/bin/bash
# Stands in for cvmfsexec: as that, it has what it runs ignore signals, in a namespace of processes of its own.
[ "$1 $2" = "-N some.repository" ] || exit 1
shift 3
exec {input}<&0
export input
unshare -rm --pid --fork --propagation unchanged /bin/bash /dev/stdin "$@" <<'!1!'
unshare -U /bin/bash /dev/stdin "$@" <<'!2!'
trap "" 1 2 3 15
"$@" <&$input {input}<&-
!2!
exit $?
!1!
"""


def test_signals_reach_a_glidein_in_cvmfsexec(site, start, scratch):
    (scratch / "cvmfsexec").write_text(CVMFSEXEC)
    (scratch / "cvmfsexec").chmod(0o755)
    process, log = start("-v", "std", HTVPN_CVMFSEXEC="./cvmfsexec", HTVPN_CVMFS_REPOSITORIES="some.repository")
    wait_for_log(log, b"^master runs$", process)
    process.terminate()
    assert process.wait(60) == 7
    assert "glidein got TERM" in log.read_text()
    assert left_in(site, scratch) == []


def test_the_shell_of_the_script_is_posix():
    for shell in ("dash", "bash"):
        subprocess.run([shell, "-n", str(LAUNCHER)], check=True)
