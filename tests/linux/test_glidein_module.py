"""The in-glidein module on a node that reaches but a web proxy: the last script runs inside, and ends in order."""

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
from bundle_site import FETCH, WANTED, full_disk
from engine_site import NAME_SERVERS, pilots_processes
from glidein_side import Stage, failure_type

from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.proxies import Squid

#: In the place of condor_startup.sh.
LAST = f"""#!/bin/bash
echo "last script $$ $*"
pwd
grep NoNewPrivs /proc/self/status
bash -c {shlex.quote(FETCH)}
trap 'echo got TERM; exit 7' TERM
sleep 1000 &
echo waits
wait
"""


#: A condor_startup.sh that is told to end while its condor_master takes its time.
SLOW = """#!/bin/bash
{master} &
echo $! >condor_master2.pid
trap 'echo got TERM' TERM
echo waits
wait $!
wait $!
echo "it ended with $?"
[ ! -e glidein_config ] || echo "its folder was there"
"""


@pytest.fixture(scope="module")
def squid(site, services, tmp_path_factory):
    with Squid(site.dmz, tmp_path_factory.mktemp("squid")) as squid:
        yield squid


@pytest.fixture
def stage(tmp_path, bundle, squid):
    stage = Stage(tmp_path)
    (tmp_path / "htcondor-vpn.conf").write_text(
        f"HTCONDOR_VPN_ENGINE = proxy\nHTCONDOR_VPN_PROXIES = {squid.endpoint}\n"
        f"HTCONDOR_VPN_NAME_SERVERS = {NAME_SERVERS}\n"
    )
    (stage.folder / "condor_startup.sh").write_text(LAST)
    stage.add_module("entry", bundle, tmp_path / "htcondor-vpn.conf")
    return stage


@pytest.fixture
def tmp(tmp_path_factory):
    """The node's place for temporary files; its path is short enough for sockets in it."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def start(site, stage, tmp_path, tmp):
    """Starts the glidein on the node, and returns its process and its log."""
    processes = []

    def start(*launcher):
        log = tmp_path / "log"
        environ = {"HTVPN_PYTHON": sys.executable, "TMPDIR": str(tmp)}
        processes.append(site.node.start([*launcher, *stage.argv], log=log, cwd=stage.start_folder, env=environ))
        return processes[-1], log

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def nothing_is_left(site, stage, tmp):
    """A check that nothing of the tunnel or of the glidein runs, and that its run folder is gone."""
    before = pilots_processes(site)

    def check(deadline_seconds=60):
        def gone():
            return pilots_processes(site) <= before and not list(tmp.glob("htcondor-vpn-*"))

        wait_until("nothing is left", deadline_seconds, lambda: gone() or None)

    return check


def test_the_last_script_runs_inside_and_the_glideins_end_is_the_tunnels(stage, start, nothing_is_left):
    process, log = start()
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    text = log.read_text()
    assert WANTED in text, text
    assert "last script" in text
    assert "NoNewPrivs:\t1" in text
    assert str(next(stage.start_folder.glob("glide_*"))) + "\n" in text
    process.terminate()
    assert process.wait(60) == 0
    assert "got TERM" in log.read_text()
    nothing_is_left()
    assert not list(stage.start_folder.glob("glide_*"))


def test_its_process_and_its_exit_code_are_those_of_the_last_script(stage, start, nothing_is_left):
    (stage.folder / "condor_startup.sh").write_text('#!/bin/bash\necho "I am $$, of $PPID: $*"\nexit 5\n')
    process, log = start()
    assert process.wait(120) == 5, log.read_text()
    assert f", of {process.pid}: glidein_config\n" in log.read_text()
    nothing_is_left()


def test_a_glidein_that_is_wrapped_needs_no_stub(stage, start, bundle, tmp_path, nothing_is_left):
    stage.attribute("HTVPN_BUNDLE", "/nonexistent")
    launcher = ["sh", str(bundle), "run", "--config", str(tmp_path / "htcondor-vpn.conf"), "--"]
    process, log = start(*launcher)
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    assert WANTED in log.read_text(), log.read_text()
    assert not list(stage.start_folder.glob("glide_*/main/*.inside"))
    process.terminate()
    assert process.wait(60) == 0
    nothing_is_left()


def test_the_folder_stays_until_htcondor_has_ended(stage, start, tmp_path, nothing_is_left):
    stage.attribute("HTVPN_CLEANUP_SECONDS", 120)
    master = f"(while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 9)"
    (stage.folder / "condor_startup.sh").write_text(SLOW.format(master=master))
    process, log = start()
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    process.terminate()
    wait_for_log(log, b"^=== Last script ended", process)
    (tmp_path / "go").touch()
    assert process.wait(60) == 0
    assert "it ended with 9\nits folder was there\n" in log.read_text()
    assert not list(stage.start_folder.glob("glide_*"))
    nothing_is_left()


def test_an_htcondor_that_ends_does_not_wait_for_its_benchmarks(stage, start, tmp_path, nothing_is_left):
    stage.attribute("HTVPN_CLEANUP_SECONDS", 120)
    shutil.copy(shutil.which("sleep"), tmp_path / "condor_kflops")
    startd = f"{tmp_path}/condor_kflops 1000; :"
    (stage.folder / "condor_startup.sh").write_text(SLOW.format(master=f"(bash -c '{startd}'; exit 9)"))
    process, log = start()
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    process.terminate()
    assert process.wait(60) == 0
    assert "it ended with 9\nits folder was there\n" in log.read_text()
    nothing_is_left()


def test_an_htcondor_that_does_not_end_is_killed_before_the_folder_goes(stage, start, nothing_is_left):
    stage.attribute("HTVPN_CLEANUP_SECONDS", 1.5)
    (stage.folder / "condor_startup.sh").write_text(SLOW.format(master="(sleep 1000; :)"))
    process, log = start()
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    process.terminate()
    assert process.wait(60) == 0
    assert "it ended with 137\nits folder was there\n" in log.read_text()
    nothing_is_left()


@pytest.mark.parametrize("_", range(10))
def test_told_to_end_at_any_moment(stage, start, _, nothing_is_left):
    seconds = random.uniform(0, 4)
    print(f"told to end after {seconds:.3f} s")
    process, _log = start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.terminate()
    process.wait(60)
    nothing_is_left()


def test_a_glidein_that_is_killed_takes_everything_with_it(stage, start, nothing_is_left):
    process, log = start()
    wait_for_log(log, b"^waits$", process, timeout_seconds=120)
    process.kill()
    process.wait()
    nothing_is_left()  # what the last script left has its time, and is killed then


def test_without_the_tunnel_the_last_script_is_not_run(stage, start, tmp_path, nothing_is_left):
    (tmp_path / "kills").write_text(
        '#!/bin/bash\nkill -KILL "$(sed -n "s/^HTVPN_HOLDER //p" glidein_config)"\n'
        'while [ -d "$(sed -n "s/^GLIDEIN_VPN_RUN_DIR //p" glidein_config)" ]; do sleep 0.1; done\n'
        "main/error_gen.sh -ok kills\n"
    )
    stage.add("entry", tmp_path / "kills", "exec")
    process, log = start()
    assert process.wait(120) == 1
    text = log.read_text()
    assert failure_type(text) == "Network", text
    assert "the tunnel is gone" in text
    assert "last script " not in text
    nothing_is_left()


def test_a_proxy_that_does_not_answer(stage, start, squid, nothing_is_left):
    stage.attribute("HTVPN_SETUP_SECONDS", 0)
    conf = stage.folder / "htcondor-vpn.conf"
    conf.write_text(
        conf.read_text().replace(f":{squid.port}", ":3999") + "HTCONDOR_VPN_CONNECT_TIMEOUT = 6 s\n"
    )
    process, log = start()
    assert process.wait(120) == 1
    assert failure_type(log.read_text()) == "Network", log.read_text()
    nothing_is_left()


def test_a_download_that_fails_when_the_tunnel_is_up(stage, start, nothing_is_left):
    (stage.folder / "htvpn-status").unlink()
    process, log = start()
    assert process.wait(120) == 1
    text = log.read_text()
    assert failure_type(text) == "Network", text
    assert "Failed to load file htvpn-status" in text
    assert "last script " not in text
    nothing_is_left()


@pytest.mark.parametrize("full", [1, 3])
def test_disks_that_are_full(site, stage, start, tmp, tmp_path, nothing_is_left, full):
    """Where TMPDIR alone is full there is another place; where all are, the glidein says so."""
    stage.attribute("HTVPN_SETUP_SECONDS", 0)
    (tmp_path / "cache").mkdir()
    with ExitStack() as exits:
        for disk in (tmp, "/tmp", "/var/tmp")[:full]:
            exits.enter_context(full_disk(site.node, disk))
        process, log = start("env", f"HTVPN_CACHE={tmp_path / 'cache'}")
        if full == 1:
            wait_for_log(log, b"^waits$", process, timeout_seconds=120)
            process.terminate()
        assert process.wait(120) == (0 if full == 1 else 1)
        if full == 3:
            assert failure_type(log.read_text()) == "WN_Resource", log.read_text()
            assert "code 74" in log.read_text()
        nothing_is_left()


def test_two_glideins_of_one_user_have_a_tunnel_each(site, stage, start, nothing_is_left):
    first, log = start()
    wait_for_log(log, b"^waits$", first, timeout_seconds=120)
    both_from = log.stat().st_size
    second, _ = start()
    wait_for_log(log, b"^waits$", second, timeout_seconds=120, start_bytes=both_from)
    folders = list(stage.start_folder.glob("glide_*/glidein_config"))
    tunnels = {re.search("^GLIDEIN_VPN_RUN_DIR (.+)$", path.read_text(), re.MULTILINE)[1] for path in folders}
    assert len(tunnels) == 2
    first.terminate()
    assert first.wait(60) == 0
    wait_until("the first one's tunnel has gone", 60, lambda: sum(map(os.path.exists, tunnels)) == 1 or None)
    assert second.poll() is None
    second.terminate()
    assert second.wait(60) == 0
    nothing_is_left()


def test_told_to_end_while_the_tunnel_comes_up(stage, start, tmp, nothing_is_left):
    """bash ends at once then, and its script does not know."""
    process, log = start()
    wait_until("the tunnel is begun", 60, lambda: list(tmp.glob("htcondor-vpn-*")) or None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    nothing_is_left()
    shutil.rmtree(next(stage.start_folder.glob("glide_*")))
