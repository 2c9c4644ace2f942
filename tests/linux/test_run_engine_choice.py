"""Which engine is taken, what is said of the others, and how flows are spread over several gateways."""

import json
import select
import subprocess
import time

import pytest
from engine_site import NAME_SERVERS, pilots_processes, sets, trusting
from shell_pilot import ShellPilot as Pilot
from shell_pilot import fetch, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.proxies import Dante, LoginNode, Squid
from htcondor_vpn.testbed.services import url

TEN = "1 2 3 4 5 6 7 8 9 10"
NOBODY = "10.1.0.1:9"  # a port at which nobody listens


@pytest.fixture(scope="module")
def squid(site, tmp_path_factory):
    with Squid(site.dmz, tmp_path_factory.mktemp("squid"), password=True) as squid:
        yield squid


@pytest.fixture(scope="module")
def login_node(site, tmp_path_factory):
    with LoginNode(site.dmz, tmp_path_factory.mktemp("sshd")) as node:
        yield node


@pytest.fixture
def run(site):
    """Runs a command on the node with these knobs, and returns what it left."""

    def run(knobs, *command):
        return site.node.run(vpn_command("run", *sets(knobs), "--", *command), timeout_seconds=60)

    return run


@pytest.fixture
def refused(site, run, tmp_path):
    """Runs with knobs that must fail with `code`, and returns the one line on stderr."""

    def refused(code, knobs):
        before = pilots_processes(site)
        done = run(knobs, "touch", str(tmp_path / "ran"))
        assert done.returncode == code, done.stderr
        assert not (tmp_path / "ran").exists()
        assert pilots_processes(site) <= before  # of which some may have been ending
        (line,) = done.stderr.splitlines()
        return line

    return refused


def by_squid(squid, **more):
    return {"ENGINE": "proxy", "PROXIES": squid.endpoint, "NAME_SERVERS": NAME_SERVERS, **more}


def by_ssh(node, **more):
    return {
        "ENGINE": "ssh", "SSH_HOSTS": "login", "SSH_CONFIG_FILE": node.config, "NAME_SERVERS": NAME_SERVERS, **more,
    }  # fmt: skip


STATE = ("sh", "-c", 'cat "$HTCONDOR_VPN_RUN_DIR/state.json" "$HTCONDOR_VPN_RUN_DIR/run.log"')


def split(done):
    """state.json and run.log, of what `STATE` printed."""
    assert done.returncode == 0, done.stderr
    state, end = json.JSONDecoder().raw_decode(done.stdout)
    return state, done.stdout[end:]


# What can be wrong


def test_a_proxy_that_wants_a_password(squid, refused):
    line = refused(84, by_squid(squid))
    assert "refuses connections without a password" in line
    assert "HTCONDOR_VPN_PROXY_CREDENTIALS_FILE" in line


def test_a_wrong_password(squid, refused, tmp_path):
    file = tmp_path / "credentials"
    file.write_text("pilot:wrong\n")
    file.chmod(0o600)
    line = refused(84, by_squid(squid, PROXY_CREDENTIALS_FILE=file))
    assert "refuses the name and password" in line
    assert "wrong" not in line


def test_a_socks_server_and_passwords(site, refused, tmp_path):
    file = tmp_path / "credentials"
    file.write_text("pilot:wrong\n")
    file.chmod(0o600)
    with Dante(site.dmz, tmp_path / "dante", password=True) as dante:
        knobs = {"ENGINE": "socks5", "SOCKS5_SERVERS": dante.endpoint, "NAME_SERVERS": NAME_SERVERS}
        assert "refuses connections without a password" in refused(84, knobs)
        assert "refuses the name and password" in refused(84, {**knobs, "SOCKS5_CREDENTIALS_FILE": file})


def test_a_wrong_password_on_the_way_to_a_gateway(gateway, squid, refused):
    line = refused(84, {**trusting(gateway), "VIA_PROXY": squid.endpoint})
    assert "refuses connections without a password" in line


def test_a_password_that_others_may_read(squid, refused, tmp_path):
    file = tmp_path / "credentials"
    file.write_text("pilot:wrong\n")
    file.chmod(0o644)
    assert "chmod 600" in refused(79, by_squid(squid, PROXY_CREDENTIALS_FILE=file))


def test_a_gateway_that_is_another_one_behind_the_proxy(gateway, squid, refused, tmp_path):
    (tmp_path / "pin").write_text("pin-sha256:" + 43 * "A" + "=\n")
    knobs = {**trusting(gateway), "GATEWAY_PIN_FILE": tmp_path / "pin", "VIA_PROXY": squid.endpoint}
    line = refused(76, {**knobs, "PROXY_CREDENTIALS_FILE": squid.credentials})
    assert "another key" in line


def test_a_login_node_with_another_key(login_node, refused):
    login_node.know(login_node.other_key())
    try:
        line = refused(85, by_ssh(login_node))
    finally:
        login_node.know(login_node.host_key)
    assert "Host key verification failed" in line


def test_a_login_node_that_does_not_know_us(login_node, refused, tmp_path):
    config = tmp_path / "ssh_config"
    text = login_node.config.read_text().replace(str(login_node.user_key), str(login_node.other_key()))
    config.write_text(text)
    assert "Permission denied" in refused(85, by_ssh(login_node, SSH_CONFIG_FILE=config))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"ENGINE": "proxy"}, "HTCONDOR_VPN_PROXIES"),
        ({"ENGINE": "socks5"}, "HTCONDOR_VPN_SOCKS5_SERVERS"),
        ({"ENGINE": "ssh"}, "HTCONDOR_VPN_SSH_HOSTS"),
        ({"ENGINE": "auto"}, "HTCONDOR_VPN_GATEWAYS"),
        ({"ENGINE": "proxy", "PROXIES": NOBODY}, "HTCONDOR_VPN_NAME_SERVERS"),
        ({"ENGINE": "carrier-pigeon"}, "HTCONDOR_VPN_ENGINE"),
        ({"ENGINE": "ssh", "SSH_HOSTS": "-oProxyCommand=x"}, "HTCONDOR_VPN_SSH_HOSTS"),
    ],
)
def test_knobs_that_do_not_fit(refused, knobs, words):
    assert words in refused(78, knobs)


def test_a_proxy_that_is_not_there(refused):
    knobs = {"ENGINE": "proxy", "PROXIES": NOBODY, "NAME_SERVERS": NAME_SERVERS, "CONNECT_TIMEOUT": 6}
    assert f"the proxy {NOBODY} cannot be reached" in refused(69, knobs)


# Choosing


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(services, login_node, squid, run):
    knobs = {**by_ssh(login_node), **by_squid(squid), "ENGINE": "auto", "SOCKS5_SERVERS": NOBODY}
    state, log = split(run(knobs, *STATE))
    assert (state["engine"], state["gateway"]) == ("ssh", "login:22")
    assert "engine proxy does not work: the proxy 10.1.0.1:3128 refuses connections without a password" in log
    assert f"engine socks5 does not work: the SOCKS server {NOBODY} cannot be reached" in log


def test_auto_goes_by_the_order_that_it_is_given(services, gateway, squid, run):
    knobs = {**trusting(gateway), **by_squid(squid), "ENGINE": "auto", "PROXY_CREDENTIALS_FILE": squid.credentials}
    assert split(run(knobs, *STATE))[0]["engine"] == "stream"
    assert split(run({**knobs, "ENGINE_ORDER": "proxy, stream"}, *STATE))[0]["engine"] == "proxy"


def test_auto_tells_of_all_when_nothing_works(refused):
    knobs = {"ENGINE": "auto", "PROXIES": NOBODY, "SOCKS5_SERVERS": NOBODY, "NAME_SERVERS": NAME_SERVERS}
    line = refused(69, {**knobs, "CONNECT_TIMEOUT": 6})
    assert f"proxy: the proxy {NOBODY} cannot be reached" in line
    assert f"socks5: the SOCKS server {NOBODY} cannot be reached" in line


class Auto:
    """A pilot that chooses between a gateway and a proxy."""

    def __init__(self, gateway, squid):
        more = {"ENGINE": "auto", "PROXY_CREDENTIALS_FILE": squid.credentials}
        self.knobs = {**trusting(gateway), **by_squid(squid), **more}

    def run_argv(self, command, *options):
        return vpn_command("run", *sets(self.knobs), *options, "--", *command)


def test_auto_takes_another_when_one_is_lost(site, services, squid, gateway, tmp_path):
    pilot = Pilot(site, Auto(gateway, squid), tmp_path)
    try:
        assert pilot.state()["engine"] == "stream"
        gateway.stop()
        wait_for(pilot, lambda state: state["engine"] == "proxy" and state["state"] == "up")
        assert pilot.ask(fetch()) == "1000"
        pilot.end()
    finally:
        gateway.start()
        pilot.kill()


# Several gateways


class Two:
    """A pilot of two gateways that know the same token and have the same key."""

    def __init__(self, site, gateway, folder):
        self.one = gateway
        subprocess.run(["cp", "-a", str(gateway.folder), str(folder)], check=True, timeout=30)
        self.other = SiteGateway(site.dmz, folder)
        self.other.endpoints = (f"{plan.DMZ_INSIDE.v4}:8444",)
        gateways = f"{self.one.endpoints[0]}, {self.other.endpoints[0]}"
        self.knobs = {**trusting(gateway), "GATEWAYS": gateways}

    def run_argv(self, command, *options):
        return vpn_command("run", *sets(self.knobs), *options, "--", *command)


@pytest.fixture
def two(site, gateway, tmp_path):
    two = Two(site, gateway, tmp_path / "two")
    with two.other:
        yield two
    gateway.stop()
    gateway.start()


def wait_for(pilot, wanted, timeout_seconds=60):
    deadline = time.monotonic() + timeout_seconds
    while not wanted(pilot.state()):
        assert time.monotonic() < deadline, (pilot.run_dir / "run.log").read_text()
        select.select([], [], [], 0.02)


def flows(gateway):
    return gateway.log.read_text().count(" flow pilot=")


def test_flows_go_through_both_and_on_through_one(site, services, two, tmp_path):
    pilot = Pilot(site, two, tmp_path)
    many = f"for i in {TEN}; do curl -s -m 20 -o /dev/null -w '%{{size_download}} ' {url('/bytes/1000')}; done"
    all_well = " ".join(10 * ["1000"])
    begin = flows(two.one), flows(two.other)
    try:
        for gateway in (two.one, two.other):
            wait_for_log(pilot.run_dir / "run.log", f"{gateway.endpoints[0]} works".encode(), pilot.process)
        assert pilot.ask(many) == all_well
        # Half, but for the load that they tell.
        wait_until(lambda: flows(two.one) - begin[0] >= 3 and flows(two.other) - begin[1] >= 3)
        two.one.stop()
        assert pilot.ask(many) == all_well  # at once: no flow is lost
        wait_for(pilot, lambda state: state["gateway"] == two.other.endpoints[0])
        assert pilot.state()["state"] == "up"
        two.other.stop()
        pilot.wait_for("down")
        two.one.start()
        pilot.wait_for("up")
        assert pilot.state()["gateway"] == two.one.endpoints[0]
        two.other.start()
        before, deadline = flows(two.other), time.monotonic() + 60
        while flows(two.other) < before + 3:  # taken back
            assert pilot.ask(many) == all_well
            assert time.monotonic() < deadline
        pilot.end()
    finally:
        pilot.kill()
