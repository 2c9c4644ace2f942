"""What condor_config.d/ and the advertiser do with real daemons, in both versions."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.publish import advertiser
from htcondor_vpn.publish.state import State
from htcondor_vpn.shipped import CONDOR_CONFIG, shipped
from htcondor_vpn.testbed import condor_prefix
from htcondor_vpn.testbed.condor_folder import Master, wait_until
from htcondor_vpn.testbed.pool import EXECUTING

pytestmark = pytest.mark.pool

DATA = Path(__file__).resolve().parents[1] / "data"
EXECUTION_POINT = "50-htcondor-vpn.conf"
ACCESS_POINT = "50-htcondor-vpn-access-point.conf"


@pytest.fixture
def config_val(suite, tmp_path):
    """Asks condor_config_val for one value of a configuration text; None if it is not defined."""

    def value(text, name, **environ):
        (tmp_path / "condor_config").write_text(f"LOCAL_DIR = {tmp_path}\n{text}")
        done = subprocess.run(
            [condor_prefix.prefix(suite) / "usr/bin/condor_config_val", name],
            env={"CONDOR_CONFIG": str(tmp_path / "condor_config"), "HOME": "/home/x", **environ},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert "Error" not in done.stderr, done.stderr
        return done.stdout.strip() if done.returncode == 0 else None

    return value


def test_our_reader_of_settings_agrees_with_htcondor(config_val):
    text = (DATA / "htcondor_syntax.conf").read_text()
    for name, expected in json.loads((DATA / "htcondor_syntax.json").read_text()).items():
        assert (config_val(text, name) or "") == expected, name


def test_the_execution_side_in_a_pilot(config_val):
    shipped_text = (shipped(CONDOR_CONFIG) / EXECUTION_POINT).read_text()
    text = 'START = Owner == "x"\nSTARTD_CRON_JOBLIST = OTHER\nUSE_SHARED_PORT = False\n' + shipped_text
    run_dir = {"HTCONDOR_VPN_RUN_DIR": "/run/htcondor-vpn-5"}
    wanted = {
        "USER_JOB_WRAPPER": "/run/htcondor-vpn-5/libexec/job-wrapper",
        "STARTER_JOB_HOOK_KEYWORD": "HTCONDOR_VPN",
        "HTCONDOR_VPN_HOOK_PREPARE_JOB_BEFORE_TRANSFER": "/run/htcondor-vpn-5/libexec/prepare-job",
        "HTCONDOR_VPN_HOOK_UPDATE_JOB_INFO": "/run/htcondor-vpn-5/libexec/update-job-info",
        "HTCONDOR_VPN_HOOK_JOB_EXIT": None,
        "STARTD_CRON_JOBLIST": "OTHER HTCONDOR_VPN",
        "STARTD_CRON_HTCONDOR_VPN_EXECUTABLE": "/run/htcondor-vpn-5/libexec/advertise",
        "START": '(Owner == "x") && (MY.VpnState =?= "up") && (TARGET.WantDocker =!= true)',
        "VpnJobNetworks": '"vanilla,apptainer"',
        "USE_SHARED_PORT": "true",
        "SHARED_PORT_PORT": "0",
    }
    assert {name: config_val(text, name, **run_dir) for name in wanted} == wanted


def test_an_execution_point_of_roots(config_val):
    text = 'START = Owner == "x"\n' + (shipped(CONDOR_CONFIG) / "50-htcondor-vpn-execution-point.conf").read_text()
    wanted = {
        "USER_JOB_WRAPPER": "/run/htcondor-vpn/libexec/job-wrapper",
        "STARTER_JOB_HOOK_KEYWORD": "HTCONDOR_VPN",
        "HTCONDOR_VPN_HOOK_PREPARE_JOB_BEFORE_TRANSFER": "/run/htcondor-vpn/libexec/prepare-job",
        "HTCONDOR_VPN_HOOK_UPDATE_JOB_INFO": "/run/htcondor-vpn/libexec/update-job-info",
        "START": '(Owner == "x") && (TARGET.WantDocker =!= true)',
        "SINGULARITY_RUN_TEST_BEFORE_JOB": "false",
        "VpnJobNetworks": '"vanilla,apptainer"',
    }
    assert {name: config_val(text, name) for name in wanted} == wanted


POOL_HOOKS = """STARTER_JOB_HOOK_KEYWORD = OSPOOL
OSPOOL_HOOK_PREPARE_JOB = /theirs/prepare
OSPOOL_HOOK_PREPARE_JOB_BEFORE_TRANSFER = /theirs/before
"""


@pytest.mark.parametrize(
    ("own", "environ", "wanted"),
    [
        (POOL_HOOKS, {}, ("OSPOOL", "/theirs/prepare", "/r/libexec/pool-prepare-job", "/r/libexec/update-job-info")),
        (POOL_HOOKS, {"HTCONDOR_VPN_POOL_HOOKS": "1"}, ("OSPOOL", "/theirs/prepare", "/theirs/before", None)),
        (
            "STARTER_DEFAULT_JOB_HOOK_KEYWORD = OSPOOL\nOSPOOL_HOOK_UPDATE_JOB_INFO = /theirs/update\n", {},
            ("OSPOOL", None, "/r/libexec/prepare-job", "/r/libexec/pool-update-job-info"),
        ),
    ],
)  # fmt: skip
def test_hooks_that_the_pool_has_stay(config_val, own, environ, wanted):
    text = own + (shipped(CONDOR_CONFIG) / EXECUTION_POINT).read_text()
    names = ("HOOK_PREPARE_JOB", "HOOK_PREPARE_JOB_BEFORE_TRANSFER", "HOOK_UPDATE_JOB_INFO")
    names = ("STARTER_JOB_HOOK_KEYWORD", *(f"OSPOOL_{name}" for name in names))
    environ = {"HTCONDOR_VPN_RUN_DIR": "/r", **environ}
    assert tuple(config_val(text, name, **environ) for name in names) == wanted


@pytest.mark.parametrize("environ", [{}, {"HTCONDOR_VPN_RUN_DIR": ""}])
def test_without_a_run_folder_no_job_starts(config_val, environ):
    text = "START = true\n" + (shipped(CONDOR_CONFIG) / EXECUTION_POINT).read_text()
    wanted = {"START": "False", "USER_JOB_WRAPPER": None, "STARTER_JOB_HOOK_KEYWORD": None, "STARTD_ATTRS": "VpnState"}
    assert {name: config_val(text, name, **environ) for name in wanted} == wanted


def test_the_access_point_keeps_the_older_names(config_val):
    prefixes = config_val((shipped(CONDOR_CONFIG) / ACCESS_POINT).read_text(), "CHIRP_DELAYED_UPDATE_PREFIX")
    assert prefixes.replace(",", " ").split() == [
        "Chirp*", "NetworkInputMb", "NetworkOutputMb", "NetworkIncomingInternal", "NetworkIncomingExternal",
        "NetworkOutgoingInternal", "NetworkOutgoingExternal",
    ]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    """A run folder as HTCondor sees it; its state is what the test writes into it."""
    folder = tmp_path / "vpn"
    folder.mkdir()
    write_programs(folder / "libexec", {"advertise": Path(advertiser.__file__).parent}, 0o755)
    programs = {
        "job-wrapper": '#!/bin/sh\nexec "$@"\n',
        "prepare-job": "#!/bin/sh\ncat > /dev/null\n",
        "update-job-info": "#!/bin/sh\ncat > /dev/null\n",
    }
    for name, text in programs.items():
        (folder / "libexec" / name).write_text(text)
        (folder / "libexec" / name).chmod(0o755)
    return folder


def test_every_slot_says_at_once_how_the_tunnel_is(pool, site, run_dir, tmp_path):
    def say(word, **values):
        since = values.pop("since", time.time())
        State(state=word, since=since, engine="stream", gateway="gw.example.org:8443", **values).write(run_dir)

    def told(word, count):
        """The slots' ads once there are `count` and all say `word`."""

        def ads():
            found = pool.slots('regexp("@advertising@", Name)')
            return found if len(found) == count and all(ad.get("VpnState") == word for ad in found) else None

        return wait_until(f"{count} slots that say {word}", 60, ads)

    config = pool.pilot(tmp_path / "pilot", name="advertising")
    config.add_shipped(EXECUTION_POINT)
    config.add("UPDATE_INTERVAL = 900")  # so that nothing is told but at once
    say("connecting", latency_ms=5.0)
    with Master(site.dmz, config, launcher=["/usr/bin/env", f"HTCONDOR_VPN_RUN_DIR={run_dir}"]):
        pool.wait_for_startd("advertising")
        told("connecting", 1)
        assert pool.slots('regexp("@advertising@", Name) && VpnLatencyMs is undefined')
        say("up", latency_ms=1.5, up_mbps=940.0, down_mbps=941.0, bytes_in=2**40, bytes_out=7)
        (slot,) = told("up", 1)
        numbers = [slot[name] for name in ("VpnLatencyMs", "VpnUpMbps", "VpnDownMbps", "VpnBytesIn", "VpnBytesOut")]
        assert numbers == [1.5, 940.0, 941.0, 2**40, 7]
        assert (slot["VpnGateway"], slot["VpnEngine"]) == ("gw.example.org:8443", "stream")
        cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000"})
        pool.wait_for_event(cluster, EXECUTING)
        say("up", since=5)
        told("up", 2)
        say("up", since=5, up_mbps=10.0)  # the state is the same, but there is a number now
        wait_until(
            "the bandwidth", 60, lambda: pool.slots('regexp("@advertising@", Name) && VpnUpMbps == 10.0') or None
        )
        say("down")
        told("down", 2)
        (run_dir / "state.json").unlink()
        told("stopped", 2)
        pool.remove(cluster)
