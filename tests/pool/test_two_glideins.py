"""Two HTCondor glideins of one user on one node, at the same time: both run jobs, one ends, and the other goes on."""

from __future__ import annotations

import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from glidein_side import SCRIPTS, STARTUP, Stage

from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.pool import EXECUTING
from htcondor_vpn.testbed.services import url

BYTES = 3_000_000
END_SECONDS = 15
#: It is under way while the other one ends, which it hears of by a file.
LONG = f"""#!/bin/sh
curl -sS -o /dev/null {url(f"/bytes/{BYTES}")} || exit 1
while [ ! -e "$1" ]; do sleep 0.1; done
curl -sS -o /dev/null {url(f"/bytes/{BYTES}")} || exit 2
exit 7
"""


@pytest.fixture(scope="module")
def suite():
    return "trixie"


class Glidein:
    """One that runs, and its pilot's name."""

    def __init__(self, process, name: str) -> None:
        self.process, self.name = process, name

    def end(self, how: str) -> None:
        self.process.send_signal(signal.Signals[f"SIG{how}"])
        self.process.wait(2 * END_SECONDS)


@pytest.fixture
def tmp():
    """What TMPDIR names on the node, for all: pytest's own folders have too long names for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def start(site, services, pool, gateway, bundle, tmp, tmp_path):
    """Starts one of a kind, and returns it when the pool has its slot."""
    processes = []
    before = set(site.processes_of_node())

    def begin(kind):
        folder = tmp_path / f"start{len(processes)}"
        folder.mkdir()
        log = folder / "log"
        environ = {"HTVPN_PYTHON": sys.executable, "TMPDIR": str(tmp)}
        argv = pilot(folder) if kind == "pilot" else glidein(folder, f"{tmp.name}-{len(processes)}")
        names = set(slots())
        processes.append(site.node.start(argv, cwd=folder, env=environ, log=log))
        try:
            (name,) = wait_until("the slot", 120, lambda: set(slots()) - names or None)
        except TimeoutError:
            pytest.fail(log.read_text())
        return Glidein(processes[-1], name)

    def slots():
        """The names of the pilots, as each makes its own or was given one."""
        ads = pool.slots('PartitionableSlot && VpnState == "up"', ["Name"])
        return [re.fullmatch(r"slot1@(.*)@\w+", ad["Name"])[1] for ad in ads]

    def pilot(folder):
        token = folder / "pool.token"
        token.touch(mode=0o600)
        token.write_text(pool.pilot_token() + "\n")
        return vpn_command(
            "glidein", "condor", "--condor", str(pool.instance.prefix), "--pool", pool.collector, "--idtoken",
            str(token), "--cpus", "2", "--memory-mb", "512", "--lead", str(END_SECONDS), "--gateway",
            gateway.endpoints[0], "--pin-file", str(gateway.pin_file), "--token-file", str(gateway.token_file), "-v",
        )  # fmt: skip

    def glidein(folder, name):
        config = pool.pilot(folder / "pilot", name=name)
        for source, target in (
            (SCRIPTS / "htvpn-launch", "htvpn-launch"), (bundle, "htcondor-vpn.bundle"), (STARTUP, STARTUP.name),
            (gateway.token_file, "pilot.token"),
        ):  # fmt: skip
            (folder / target).write_bytes(source.read_bytes())
        (folder / "htvpn-launch").chmod(0o755)
        (folder / "htcondor-vpn.conf").write_text(
            f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
        )
        stage = Stage(folder)
        stage.add_condor(pool.instance.prefix / "usr", (config.folder / "condor_config").read_text())
        stage.add_module()
        arguments = stage.arguments(stage.folder.as_uri())
        return ["./htvpn-launch", f"./{STARTUP.name}", *arguments]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
    wait_until("nothing is left", 30, lambda: set(site.processes_of_node()) <= before or None)


def on(glidein, **more):
    return {"executable": "job.sh", "requirements": f'regexp("@{glidein.name}@", TARGET.Name)', **more}


@pytest.mark.parametrize("kind", ["glidein", "pilot"])
@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_one_ends_and_the_other_goes_on(pool, start, tmp, tmp_path, kind, how):
    first, second = start(kind), start(kind)
    assert first.name != second.name
    told = tmp_path / "told"
    short = pool.submit(on(first), {"job.sh": "#!/bin/sh\nexec sleep 1000\n"})
    long = pool.submit(on(second, arguments=str(told)), {"job.sh": LONG})
    for cluster in (short, long):
        pool.wait_for_event(cluster, EXECUTING)
    first.end(how)
    ended = f'regexp("@{first.name}@", Name)'
    if how == "TERM":
        wait_until("its ads are withdrawn", END_SECONDS, lambda: pool.slots(ended) == [] or None)
    pool.remove(short)
    told.touch()
    ad = pool.wait_for_history(long)
    assert ad["ExitCode"] == 7
    assert ad["NumJobStarts"] == 1, "it was not disturbed"
    assert ad["ChirpNetworkBytesIn"] > 2 * BYTES
    ad = pool.wait_for_history(pool.submit(on(second, arguments=str(told)), {"job.sh": LONG}))
    assert (ad["ExitCode"], ad["NumJobStarts"]) == (7, 1)
    second.end("TERM")
    assert [path.name for path in tmp.iterdir() if not path.name.startswith("htvpn-cache-")] == []
