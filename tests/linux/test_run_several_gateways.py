"""Several gateways: in which proportion flows are spread, and what becomes of one that goes, drains, or moves."""

import re
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from engine_site import hosts, sets, trusting
from shell_pilot import PATIENT, fetch, wait_until

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import url
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.settling import ip

HERE = Path(__file__).parent
NAME = "gateways.site.example"
MORE = ("10.1.0.3", "10.1.0.4")  # addresses of the DMZ besides its own
PATIENCE_SECONDS = 60
#: When a gateway that says nothing any more has to be left at the latest; the page says 7 s.
LEAVE_SECONDS = 10


@pytest.fixture(scope="module")
def first(site, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("first"), "--name", NAME) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def addresses(site):
    for address in MORE:
        ip("dmz", f"addr add {address}/24 dev eth0")
    yield
    for address in MORE:
        ip("dmz", f"addr delete {address}/24 dev eth0")


@pytest.fixture
def another(site, first, tmp_path):
    """Starts a gateway at HOST:PORT that knows the same token and has the same certificate as the first one."""
    with ExitStack() as exits:

        def another(endpoint, *options):
            folder = tmp_path / endpoint.replace(":", "-")
            subprocess.run(["cp", "-a", str(first.folder), str(folder)], check=True, timeout=30)
            gateway = SiteGateway(site.dmz, folder, *options)
            gateway.log.write_text("")
            gateway.endpoints = (endpoint,)
            return exits.enter_context(gateway)

        yield another
    first.stop()
    first.start()


class Gateways:
    """A pilot of these gateways, as HTCONDOR_VPN_GATEWAYS has them."""

    def __init__(self, gateway, gateways, **knobs):
        self.knobs = {**trusting(gateway), "GATEWAYS": gateways, **knobs}

    def run_argv(self, command, *options):
        return vpn_command("run", *sets(self.knobs), *options, "--", *command)


@pytest.fixture
def pilot(site, first, start_pilot, tmp_path):
    def start(gateways, *names, probes=PATIENT, **knobs):
        """Returns when those of `names` answer as well."""
        running = start_pilot(site, Gateways(first, gateways, **knobs), tmp_path, knobs=probes)
        for name in names:
            until_logged(running, f"{name} works")
        return running

    return start


def flows(gateway):
    return gateway.log.read_text().count(" flow pilot=")


class Counted:
    """How the flows from now on are spread over gateways; each is in the log only when it has ended."""

    def __init__(self, *gateways):
        self._gateways = gateways
        self._before = [flows(gateway) for gateway in gateways]

    def now(self):
        return tuple(flows(gateway) - before for gateway, before in zip(self._gateways, self._before))

    def when(self, total):
        wait_until(lambda: sum(self.now()) >= total, PATIENCE_SECONDS)
        return self.now()


def many(count):
    """So many fetches, one flow each: by both versions of IP curl begins another one when the first takes 0.2 s."""
    return f"for i in $(seq {count}); do {fetch().replace('curl', 'curl -4')}; echo; done"


def until_logged(pilot, pattern):
    wait_for_log(pilot.run_dir / "run.log", pattern.encode(), pilot.process, timeout_seconds=PATIENCE_SECONDS)


def logged_at(pilot, pattern):
    """The clock's time of the first line with that pattern, seconds since 1970."""
    until_logged(pilot, pattern)
    line = next(line for line in (pilot.run_dir / "run.log").read_text().splitlines() if re.search(pattern, line))
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


@pytest.fixture
def black_hole(site):
    """Within, what comes to a gateway's port is dropped without a word."""

    @contextmanager
    def black_hole(endpoint):
        host, port = endpoint.split(":")
        rules = (
            "table ip hole { chain in { type filter hook input priority 0; "
            f"ip daddr {host} tcp dport {port} drop ; }} ; }}"
        )
        nft = find_program("nft", "nftables")
        site.dmz.run([nft, rules], as_root=True, check=True)
        try:
            yield
        finally:
            site.dmz.run([nft, "delete", "table", "ip", "hole"], as_root=True, check=True)

    return black_hole


def test_weights(services, first, another, pilot):
    second = another("10.1.0.1:8444")
    running = pilot(f"{first.endpoints[0]};weight=3, {second.endpoints[0]}", first.endpoints[0], second.endpoints[0])
    counted = Counted(first, second)
    assert running.ask(many(16)).split() == 16 * ["1000"]
    by_first, by_second = counted.when(16)  # 12 and 4, but for the load that they tell
    assert by_first >= 9
    assert by_second >= 2
    running.end()


@pytest.mark.alone
def test_one_that_falls_silent_is_left_within_10_s_and_taken_back(services, first, another, pilot, black_hole):
    """With the knobs' defaults: no flow is lost, and none waits for longer than it takes to notice."""
    second = another("10.1.0.1:8444")
    names = first.endpoints[0], second.endpoints[0]
    running = pilot(", ".join(names), *names, probes=("UP_MBPS=1000", "DOWN_MBPS=1000"))
    assert running.ask(many(4)).split() == 4 * ["1000"]
    with black_hole(first.endpoints[0]):
        begin = time.time()
        slow = f"for i in 1 2 3 4; do curl -s -m {PATIENCE_SECONDS} -o /dev/null -w '%{{size_download}}\\n' "
        assert running.ask(f"{slow} {url('/bytes/1000')} & done; wait", 2 * PATIENCE_SECONDS).split() == 4 * ["1000"]
        assert logged_at(running, f"{first.endpoints[0]} is left") - begin <= LEAVE_SECONDS
        assert running.ask(many(4)).split() == 4 * ["1000"]  # at once, or the time would not do
        state = running.state()
        assert (state["state"], state["gateway"]) == ("up", second.endpoints[0])
        assert [(each["name"], each["up"]) for each in state["gateways"]] == [(names[0], False), (names[1], True)]
    until_logged(running, f"{names[0]} is left(.|\n)*{names[0]} works")
    counted = Counted(first, second)
    assert running.ask(many(4)).split() == 4 * ["1000"]
    assert min(counted.when(4)) >= 1
    running.end()


def test_one_that_drains_gets_no_new_flow(site, services, first, another, pilot):
    second = another("10.1.0.1:8444")
    names = first.endpoints[0], second.endpoints[0]
    running = pilot(f"{names[0]};weight=1000, {names[1]};weight=0.001", *names)
    held = hold(running)  # by the first
    site.dmz.run(vpn_command("gateway", "drain", "--dir", str(first.state_folder)), check=True)
    counted = Counted(first, second)
    assert running.ask(many(6)).split() == 6 * ["1000"]
    assert counted.when(6) == (0, 6)
    assert end(running, held) == "before after"
    assert counted.when(7) == (1, 6)
    running.end()


def test_a_rolling_restart_loses_no_flow(site, services, first, another, pilot):
    """While flows are made without end each gateway is restarted in its place, under flows that go on; and then each
    is drained to its end, and started again."""
    second = another("10.1.0.1:8444")
    names = first.endpoints[0], second.endpoints[0]
    running = pilot(", ".join(names), *names)
    held = [hold(running, number) for number in (6, 7, 8, 9)]  # some by each
    made, over = running.run_dir / "made", running.run_dir / "over"
    made.touch()
    running.ask(f"while [ ! -e {over} ]; do {{ {fetch()}; echo; }} >> {made}; done & echo")

    def operate(gateway, *words):
        argv = vpn_command("gateway", *words, "--dir", str(gateway.state_folder))
        site.dmz.run(argv, timeout_seconds=120, check=True)

    def go_on(count=10):
        enough = len(made.read_text().split()) + count
        wait_until(lambda: len(made.read_text().split()) >= enough, PATIENCE_SECONDS)

    go_on()
    for gateway in (first, second):
        operate(gateway, "restart")
        go_on()
    assert [end(running, each) for each in held] == 4 * ["before after"]
    for gateway in (first, second):
        operate(gateway, "drain", "--wait")
        assert gateway.process.wait(PATIENCE_SECONDS) == 0
        go_on()
        before = len(re.findall(f"{gateway.endpoints[0]} works", (running.run_dir / "run.log").read_text()))
        gateway.start()
        until_logged(running, f"(?:{gateway.endpoints[0]} works(?:.|\\n)*){{{before + 1}}}")
        go_on()
    over.touch()
    assert set(made.read_text().split()) == {"1000"}
    running.end()


def hold(running, number=9):
    """Begins a flow that goes on, by that file descriptor of the shell; returns the file with what it says."""
    told, says = running.run_dir / f"{number}.in", running.run_dir / f"{number}.out"
    says.touch()
    flow = f"{sys.executable} {HERE}/held_flow.py {plan.WORLD['http'].v4} {ECHO_PORT}"
    running.ask(f"mkfifo {told}; {flow} < {told} > {says} & exec {number}> {told}")
    wait_for_log(says, b"^open$", running.process, timeout_seconds=PATIENCE_SECONDS)
    return says


def end(running, says):
    """Goes on with that flow to its end; returns what came back."""
    running.ask(f"echo >&{says.stem}; exec {says.stem}>&-")
    found = wait_for_log(says, rb"^open\n(.+)$", running.process, timeout_seconds=PATIENCE_SECONDS)
    return found[1].decode()


def test_each_address_of_a_name_is_a_gateway(site, services, first, another, addresses, pilot):
    """Spread over both, each checked by the name's certificate; then one moves, and the other goes, with its flow."""
    second = another("10.1.0.3:8443")
    knobs = {"GATEWAY_PIN_FILE": "", "GATEWAY_CA_FILE": first.state_folder / "gateway.crt"}
    with hosts(site, NAME, plan.DMZ_INSIDE.v4, "10.1.0.3") as change:
        names = [f"{NAME}:8443 at {address}" for address in (plan.DMZ_INSIDE.v4, *MORE)]
        running = pilot(f"{NAME}:8443", *names[:2], **knobs)
        assert running.state()["gateway"] == f"{NAME}:8443"
        counted = Counted(first, second)
        assert running.ask(many(10)).split() == 10 * ["1000"]
        assert min(counted.when(10)) >= 3
        held = [hold(running, number) for number in (6, 7, 8, 9)]  # some by each
        third = another("10.1.0.4:8443")
        change("10.1.0.4")
        second.stop()  # has the name looked up at once
        until_logged(running, f"{names[2]} works")
        counted = Counted(first, third)
        assert running.ask(many(4)).split() == 4 * ["1000"]
        assert counted.when(4) == (0, 4)
        said = [end(running, each) for each in held]
        whole = said.count("before after")
        assert 1 <= whole < len(said)
        assert all(each.startswith("ConnectionResetError") for each in said if each != "before after")
        assert counted.when(4 + whole) == (whole, 4)
        running.end()


def test_two_addresses_of_one_gateway_have_one_share(site, services, first, another, pilot):
    second = another("10.1.0.1:8444")
    with hosts(site, NAME, plan.DMZ_INSIDE.v4, plan.DMZ_INSIDE.v6):
        names = [f"{NAME}:8443 at {address}" for address in plan.DMZ_INSIDE]
        running = pilot(f"{NAME}:8443, {second.endpoints[0]}", *names, second.endpoints[0])
        counted = Counted(first, second)
        assert running.ask(many(30)).split() == 30 * ["1000"]
        by_first, by_second = counted.when(30)
        assert by_first <= 18  # with two shares of three it would be 20
        assert by_second <= 24
        running.end()


def test_what_only_a_later_gateway_carries_is_carried_then(site, services, another, pilot, tmp_path):
    """By the pilot itself, and by a job that starts afterwards."""
    only_v4, later = another("10.1.0.1:8444", "--deny", "::/0"), "10.1.0.1:8445"
    running = pilot(f"{only_v4.endpoints[0]}, {later}", only_v4.endpoints[0])
    by_v6 = f"curl -6 -s -m 10 http://http.{plan.ZONE}/peer"
    assert running.state()["families"] == ["ipv4"]
    assert running.ask(by_v6) == ""
    another(later)
    until_logged(running, f"{later} works")
    wait_until(lambda: running.ask(by_v6) == plan.DMZ_OUTSIDE.v6.compressed, PATIENCE_SECONDS)
    assert running.state()["families"] == ["ipv4", "ipv6"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / ".job.ad").write_text('MyType = "Job"\nRequestCpus = 1\n')
    starter = f"{sys.executable} {HERE}/fake_starter.py $HTCONDOR_VPN_RUN_DIR/libexec {scratch}"
    assert plan.DMZ_OUTSIDE.v6.compressed in running.ask(f"{starter} {by_v6}", PATIENCE_SECONDS)
    running.end()


def test_a_certificate_for_another_name(site, first, another, addresses, start_pilot, tmp_path):
    knobs = {"GATEWAY_PIN_FILE": "", "GATEWAY_CA_FILE": first.state_folder / "gateway.crt"}
    with hosts(site, "other.site.example", plan.DMZ_INSIDE.v4):
        argv = Gateways(first, "other.site.example:8443", **knobs).run_argv(["touch", str(tmp_path / "ran")])
        done = site.node.run(argv, timeout_seconds=PATIENCE_SECONDS)
    assert done.returncode == 76, done.stderr
    assert re.search(r"other.site.example:8443 at 10.1.0.1 has no certificate that we trust", done.stderr)
    assert not (tmp_path / "ran").exists()
