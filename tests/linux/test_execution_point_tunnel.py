"""Jobs of an execution point of root's that go through the tunnel of an ordinary account on the same host."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from shell_pilot import wait_until
from test_execution_point import REACH, ExecutionPoint, Listening

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.services import url

POLICY = """
[rule by-host]
when = TARGET.ByHost =?= true
network = host

[rule others]
network = tunnel
"""


class Node:
    """The node with a default route by which it could leak, the tunnel of its ordinary user, and root's service."""

    def __init__(self, site, gateway, folder, start_pilot):
        self.site, self.gateway, self.folder, self._start = site, gateway, folder, start_pilot
        for name in ("tunnel-1", "tunnel-2", "point"):
            (folder / name).mkdir()
        (folder / "policy").write_text(POLICY)
        self.run_dir = folder / "tunnel"
        self.tunnel = self.start_tunnel("tunnel-1")
        knobs = (f"EXECUTION_POINT_TUNNEL = {self.run_dir}", f"JOB_POLICY_FILE = {folder / 'policy'}",
                 f"EXECUTION_POINT_ALLOW = {plan.DMZ_INSIDE.v4}")  # fmt: skip
        self.point = ExecutionPoint(site.node, folder / "point", *knobs)

    def start_tunnel(self, name):
        return self._start(self.site, self.gateway, self.folder / name, "--run-dir", str(self.run_dir))

    def run_job(self, *command, **more):
        return self.point.run_job("--prepared", "0", *command, **more)


@pytest.fixture
def node(sealed, services, tmp_path, start_pilot):
    with SiteGateway(sealed.dmz, tmp_path / "gateway") as gateway:
        node = Node(sealed, gateway, tmp_path, start_pilot)
        yield node
        if node.point.process.poll() is None:
            node.point.end()
        node.tunnel.kill()


def fetch(size=100000, seconds=20):
    return f"curl -s -m {seconds} -o /dev/null -w '%{{size_download}}' {url(f'/bytes/{size}')}"


def test_a_job_goes_through_the_tunnel_and_is_counted_and_limited(node):
    """By both versions of IP, by name, and with a name server of the host's that nobody could reach."""
    http = plan.WORLD["http"]
    job = (f"{fetch()}; echo; curl -4 -s -m 20 {url('/peer')}; echo;"
           f"curl -s -m 20 http://[{http.v6}]/peer; echo; {fetch(2_000_000)}")  # fmt: skip
    told = node.run_job("/bin/sh", "-c", job, ad="VpnBandwidthMbps = 10")
    said = told["out"].split("\n")
    assert said[0] == "100000", told["err"] + node.point.log.read_text()
    assert said[1].startswith(str(plan.DMZ_OUTSIDE.v4))
    assert str(plan.DMZ_OUTSIDE.v6) in said[2]
    assert said[3] == "2000000"
    assert told["took_ms"] > 2e6 * 8 / 10e6 * 1000 * 0.9
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) > 2_100_000


def test_the_policy_says_by_which_network_a_job_goes(node):
    """The gateway's own port: to be reached by the host's network, and nothing that the gateway would connect to."""
    there = f"{plan.DMZ_INSIDE.v4}@{PORT}"
    by_host = node.run_job(sys.executable, "-c", REACH, there, ad="ByHost = true")
    assert by_host["out"].endswith("reached\n"), by_host["out"] + node.point.log.read_text()
    assert not node.run_job(sys.executable, "-c", REACH, there)["out"].endswith("reached\n")


def test_a_job_reaches_neither_the_host_nor_another_job(node):
    places = [f"{plan.NODE.v4}@22", f"{plan.NODE.v6}@22", "198.18.0.2@22", "198.19.0.0@22", "198.19.128.2@22"]
    with Listening(node.site.node, 22):
        told = node.run_job(sys.executable, "-c", REACH, *places)
    assert "reached" not in told["out"]
    assert len(told["out"].splitlines()) == len(places)


def test_what_is_inside_the_tunnel_reaches_neither_the_host_nor_jobs(node):
    with Listening(node.site.node, 22):
        for place in ("198.18.0.2@22", "198.19.128.1@22", f"{plan.NODE.v4}@22"):
            assert "reached" not in node.tunnel.ask(f"{sys.executable} -c '{_quotable(REACH)}' {place}")


def _quotable(code):
    return code.replace("'", '"')


def test_a_running_job_has_no_network_while_the_tunnel_is_gone_and_then_the_next_one(node):
    job = (f"{fetch()} >first; mv first done; read x <go; {fetch(100, 3)} >second; mv second tried; read x <go;"
           f"cat tried; {fetch()}")  # fmt: skip
    process, scratch = node.point.start_job("--prepared", "0", "/bin/sh", "-c", job)
    os.mkfifo(scratch / "go")
    wait_until((scratch / "done").exists)
    late, prepared = node.point.start_job("--prepared", "100", "true")
    wait_until((prepared / "prepared").exists)
    node.tunnel.kill()
    wait_until(lambda: "htvtun" not in node.point.links())
    (scratch / "go").write_text("go\n")
    refused = node.run_job("true")  # by the hook, before anything is fetched for it
    assert refused["out"].startswith("HookStatusCode = 301\n"), refused
    assert node.run_job("true", ad="ByHost = true")["status"] == 0
    (prepared / "go").touch()
    assert json.loads(late.communicate(timeout=60)[0])["status"] != 0  # nor by the wrapper, for whom it was up before
    wait_until((scratch / "tried").exists)
    node.tunnel = node.start_tunnel("tunnel-2")
    wait_until(lambda: "htvtun" in node.point.links())
    (scratch / "go").write_text("go\n")
    told = json.loads(process.communicate(timeout=100)[0])
    assert told["out"] == "0100000", told["err"] + node.point.log.read_text()


def test_all_is_taken_back(node):
    assert node.run_job("true")["status"] == 0
    node.point.end(signal.SIGKILL)
    node.point.start()
    assert node.run_job("/bin/sh", "-c", fetch())["out"] == "100000"
    assert node.point.end() == 0
    assert node.point.links() == set()
    assert "htcondor_vpn" not in node.point.tables()
    for version in ("-4", "-6"):
        rules = node.site.node.run(["ip", version, "rule"], as_root=True, check=True).stdout
        assert "104" not in rules, rules
    assert node.tunnel.ask(fetch()) == "100000"
