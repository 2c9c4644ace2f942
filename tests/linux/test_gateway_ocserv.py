"""`htcondor-vpn gateway --kind ocserv`: of an ordinary user, and of root with the kernel's NAT."""

import asyncio
import os
import signal

import pytest
from packet_gateways import OcservGateway, check_everything, check_forbidden, network
from shell_pilot import ShellPilot, fetch, wait_until
from vpn_faults import HeldFlow

from htcondor_vpn.errors import NamespacesUnavailable
from htcondor_vpn.packet_gateway.ocserv_process import OcservProcess
from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace


@pytest.fixture(params=[False, True], ids=["an ordinary user's", "root's"])
def gateway(request, site, services, tmp_path):
    before, processes = network(site.dmz), set(site.processes())
    gateway = OcservGateway(site.dmz, tmp_path / "o", request.param)
    try:
        yield gateway
        assert gateway.stop() == 0
        wait_until(lambda: set(site.processes()) <= processes)
        wait_until(lambda: network(site.dmz) == before)
    finally:
        gateway.process.kill()
        gateway.process.wait(60)


@pytest.fixture
def pilot(site, gateway, tmp_path):
    pilot = ShellPilot(site, gateway.used(), tmp_path)
    yield pilot
    pilot.kill()


def test_it_carries_everything_where_it_may(gateway, pilot):
    wait_until(lambda: pilot.state()["transport"] == "dtls", 120)
    assert pilot.state()["families"] == ["ipv4", "ipv6"]
    assert pilot.ask(fetch(3_000_000, 20)) == "3000000"
    check_everything(pilot)
    check_forbidden(pilot)
    pilot.end()


def test_connections_outlive_an_ocserv_that_dies_and_a_revoked_user_is_out(site, gateway, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    users = gateway.folder / "g/ocserv/passwd"
    users.rename(users.with_name("away"))
    wait_for_log(gateway.log, b"passwd cannot be read", gateway.process)
    users.with_name("away").rename(users)
    since = pilot.state()["since"]
    os.kill(of_ocserv(site, "main"), signal.SIGKILL)
    pilot.wait_for_return(since, 120)
    assert flow.end() == "before after"
    gateway.verb("add", "other")
    assert gateway.verb("list").split() == ["NAME", "pilot", "other"]
    gateway.verb("revoke", "pilot")
    pilot.wait_for("down")
    wait_until(lambda: "does not let us in" in pilot.state()["reason"])
    assert pilot.ask(fetch(1000, 2)) == "0"
    pilot.end()


@pytest.mark.parametrize("which", ["main", "sm", "worker"])
def test_a_process_of_ocserv_that_is_stopped_goes_on(site, gateway, pilot, tmp_path, start_pilot, which):
    """`sm` is what logs users in, `worker` what carries a session's packets."""
    flow = HeldFlow(pilot, tmp_path)
    stopped = of_ocserv(site, which)
    os.kill(stopped, signal.SIGSTOP)
    wait_for_log(gateway.log, b"process %d of ocserv is stopped, and goes on now" % stopped, gateway.process)
    assert flow.end() == "before after"
    (tmp_path / "another").mkdir()
    another = start_pilot(site, gateway.used(), tmp_path / "another")
    assert another.ask(fetch(1000, 20)) == "1000"
    another.end()
    pilot.end()


def of_ocserv(site, which):
    """The process id of one of its kinds of processes, as it names them."""
    return wait_until(lambda: next((pid for pid in site.processes() if comm(pid) == f"ocserv-{which}"), None))


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def test_why_it_cannot_be_started_is_told(tmp_path):
    """With a cause, a remedy and an exit code, whatever fails between fork and exec."""

    async def body():
        namespace = await TunNamespace.make(as_root=True)
        namespace.close()
        with pytest.raises(NamespacesUnavailable, match="ocserv cannot be started in the gateway's namespace: "):
            await OcservProcess.start(tmp_path / "ocserv.conf", namespace, True)

    asyncio.run(body())


@pytest.mark.parametrize("as_root", [False, True])
def test_a_killed_gateway_leaves_nothing(site, services, tmp_path, as_root):
    before, processes = network(site.dmz), set(site.processes())
    gateway = OcservGateway(site.dmz, tmp_path / "o", as_root)
    gateway.stop(signal.SIGKILL)
    wait_until(lambda: set(site.processes()) <= processes)
    wait_until(lambda: network(site.dmz) == before)


def test_a_port_that_is_taken_and_two_ports(site, services, tmp_path):
    with site.dmz.socket(2, 1) as taken:
        taken.bind(("0.0.0.0", 9443))
        taken.listen(1)
        argv = vpn_command("gateway", "--dir", str(tmp_path / "g"), "--kind", "ocserv", "--listen", "0.0.0.0:9443")
        done = site.dmz.run(argv, timeout_seconds=60)
        assert (done.returncode, "cannot listen on 0.0.0.0:9443" in done.stderr) == (80, True), done.stderr
        done = site.dmz.run([*argv, "--listen", "10.1.0.1:9444"], timeout_seconds=60)
        assert (done.returncode, "one port" in done.stderr) == (78, True), done.stderr
