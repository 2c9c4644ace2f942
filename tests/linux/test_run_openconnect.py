"""`htcondor-vpn run` by an AnyConnect server: a real ocserv, with all that can go wrong between us."""

import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from engine_site import Used, by_openconnect, hosts, pilots_processes
from shell_pilot import ShellPilot, children, fetch, network_of, wait_until
from vpn_faults import ECHO, HERE, HeldFlow, cmdline, parent, udp_is_blocked

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.proxies import PASSWORD
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.vpn_servers import Ocserv


@pytest.fixture(scope="module")
def server(site, services, tmp_path_factory):
    with Ocserv(site.dmz, tmp_path_factory.mktemp("ocserv")) as server:
        yield server


@pytest.fixture
def used(server):
    return Used(server, by_openconnect(server), "tcp", "udp")


@pytest.fixture
def pilot(site, used, tmp_path):
    pilot = ShellPilot(site, used, tmp_path)
    yield pilot
    pilot.kill()


def client(pilot):
    """The process with libopenconnect: a child of the engine."""

    def find():
        for engine in children(pilot.process.pid):
            for pid in children(engine):
                if b"openconnect_client" in cmdline(pid):
                    return pid
        return None

    return wait_until(find)


@pytest.fixture
def other(site, server, tmp_path):
    """Has another server take the place of the usual one."""

    @contextmanager
    def other(**how):
        server.stop()
        try:
            with Ocserv(site.dmz, tmp_path / "other", **how) as another:
                yield Used(another, by_openconnect(another), "tcp", "udp")
        finally:
            server.start()

    return other


@pytest.mark.parametrize("address", ECHO)
def test_datagrams(site, used, address):
    asked = [f"{address},{ECHO_PORT},{size},3" for size in (1, 1200)]
    done = site.node.run(used.run_argv([sys.executable, str(HERE / "udp_client.py"), *asked]), timeout_seconds=90)
    assert done.stdout.split() == ["ok"] * len(asked), done.stderr


@pytest.mark.parametrize("address", ECHO)
def test_ping(pilot, address):
    assert "1 packets transmitted, 1 received" in pilot.ask(f"ping -n -c 1 -W 15 {address}")


def test_it_says_how_packets_travel_and_falls_back_to_tls(site, pilot, tmp_path):
    """UDP that is blocked midway: connections go on over TLS, and the state says so."""
    wait_until(lambda: pilot.state()["transport"] == "dtls", 120)
    flow = HeldFlow(pilot, tmp_path)
    with udp_is_blocked(site):
        wait_until(lambda: pilot.state()["transport"] == "tls", 120)
        wait_until(lambda: pilot.ask(fetch()) == "1000")
        assert flow.end() == "before after"
    wait_until(lambda: pilot.state()["transport"] == "dtls", 120)
    pilot.end()


def test_tls_alone_where_udp_is_blocked_from_the_start_or_not_wanted(site, server, used, tmp_path):
    said = ["sh", "-c", "cat $HTCONDOR_VPN_RUN_DIR/state.json"]
    with udp_is_blocked(site):
        assert '"transport": "tls"' in site.node.run(used.run_argv(said)).stdout
    without = Used(server, by_openconnect(server, DTLS="off"), "tcp")
    with Capture(site, allowed=without.allowed) as capture:
        assert '"transport": "tls"' in site.node.run(without.run_argv(said)).stdout
    assert [str(packet) for packet in capture.foreign] == []


@pytest.mark.parametrize("victim", ["client", "its namespace's process", "engine"])
def test_what_is_killed_is_started_again(site, pilot, tmp_path, victim):
    flow = HeldFlow(pilot, tmp_path)
    before = client(pilot)
    engine = parent(before)
    others = (network_of(engine), None)
    room = wait_until(lambda: next((pid for pid in children(engine) if network_of(pid) not in others), None))
    os.kill({"client": before, "its namespace's process": room, "engine": engine}[victim], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{before}").exists())
    pilot.wait_for("up")
    wait_until(lambda: pilot.ask(fetch()) == "1000")
    assert client(pilot) != before
    assert ("before after" if victim == "client" else "ConnectionReset") in flow.end()
    pilot.end()


def test_connections_outlive_a_restart_of_the_server(server, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    server.stop()
    pilot.wait_for("down")
    server.start()
    pilot.wait_for("up", 120)
    assert flow.end() == "before after"
    pilot.end()


def test_connections_outlive_a_link_that_falls_silent(site, link, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    link.blackhole()
    pilot.wait_for("down")
    link.up()
    pilot.wait_for("up", 120)
    assert flow.end() == "before after"
    pilot.end()


@pytest.mark.parametrize("others", [[], ["client"], ["engine", "client"]])
def test_a_killed_run_leaves_nothing(site, used, tmp_path, others):
    before = pilots_processes(site)
    pilot = ShellPilot(site, used, tmp_path)
    of = {"client": client(pilot), "engine": parent(client(pilot))}
    for pid in [*(of[other] for other in others), pilot.process.pid]:
        os.kill(pid, signal.SIGKILL)
    pilot.process.wait(60)
    wait_until(lambda: pilots_processes(site) <= before)  # of which some may have been ending
    with suppress(BrokenPipeError):
        pilot.process.stdin.close()


def test_nothing_leaves_but_to_the_server(leaky_site, used, tmp_path):
    with Capture(leaky_site, allowed=used.allowed) as capture:
        pilot = ShellPilot(leaky_site, used, tmp_path)
        try:
            assert pilot.ask(fetch()) == "1000"
            for victim in (client(pilot), parent(client(pilot))):
                os.kill(victim, signal.SIGKILL)
                pilot.ask(fetch())
                pilot.wait_for("up")
            pilot.end()
        finally:
            pilot.kill()
    # That nobody listens any more, told by the node's kernel to who still sends to a client that was killed.
    closed = f"IPv4 {plan.NODE.v4} > {plan.DMZ_INSIDE.v4} protocol 1"
    assert {str(packet) for packet in capture.foreign} - {closed} == set()
    assert capture.total > 0


# What the server says


def test_a_name_of_which_one_address_is_silent(site, server, tmp_path):
    """Left alone, the library would wait for it for minutes."""
    rule = f"ip6 daddr {plan.DMZ_INSIDE.v6} meta l4proto {{ tcp, udp }} drop"
    hole = f"table inet hole {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}\n"
    site.dmz.run(["nft", "-f", "-"], stdin=hole, as_root=True, check=True)
    try:
        with hosts(site, "vpn.site.example", plan.DMZ_INSIDE.v6, plan.DMZ_INSIDE.v4):
            found = site.node.run(["getent", "ahosts", "vpn.site.example"], check=True).stdout
            assert found.startswith(plan.DMZ_INSIDE.v6.compressed)
            port = server.endpoint.rpartition(":")[2]
            used = Used(server, by_openconnect(server, SERVERS=f"vpn.site.example:{port}"), "tcp", "udp")
            pilot = ShellPilot(site, used, tmp_path)
            try:
                assert pilot.ask(fetch()) == "1000"
                pilot.end()
            finally:
                pilot.kill()
    finally:
        site.dmz.run(["nft", "delete", "table", "inet", "hole"], as_root=True, check=True)


def test_a_split_tunnel_is_one(leaky_site, other, tmp_path):
    """What the server does not route is refused, and goes nowhere else."""
    dns, http = plan.WORLD["dns"].v4, plan.WORLD["http"].v4
    with other(routes=[f"{http}/32"], name_servers=[dns]) as used:
        connect = f"import socket; socket.create_connection(('{plan.WORLD['iperf'].v4}', 80), 20)"
        with Capture(leaky_site, allowed=used.allowed) as capture:
            pilot = ShellPilot(leaky_site, used, tmp_path)
            try:
                assert pilot.ask(fetch()) == "1000"
                assert "No route to host" in pilot.ask(f'{sys.executable} -c "{connect}" 2>&1')
                pilot.end()
            finally:
                pilot.kill()
    assert [str(packet) for packet in capture.foreign] == []


@pytest.mark.parametrize(
    "header",
    [
        "X-CSTP-Split-Include: 10.0.0.0/8;touch$IFS@",
        "X-CSTP-Split-Exclude: $(touch @)",
        "X-CSTP-DNS: `touch @`",
        "X-CSTP-DNS: 127.0.0.1",
    ],
)
def test_a_hostile_server_is_not_believed(site, other, tmp_path, header):
    mark = tmp_path / "ran"
    with other(lines=[f'custom-header = "{header.replace("@", str(mark))}"']) as used:
        argv = used.run_argv(["touch", str(mark)], "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=8")
        done = site.node.run(argv, timeout_seconds=60)
    assert done.returncode == 69, done.stderr
    assert "the network that it gives us" in done.stderr
    assert not mark.exists()


# Who is who


def test_a_server_with_another_key_gets_no_credential(site, server, used):
    start_bytes = server.log.stat().st_size
    wrong = Used(server, {**used.knobs, "GATEWAY_PIN": "pin-sha256:" + 43 * "A" + "="})
    done = site.node.run(wrong.run_argv(["true"]), timeout_seconds=60)
    assert done.returncode == 76
    assert "no credential was sent" in done.stderr
    assert b"POST" not in server.log.read_bytes()[start_bytes:]
    assert b"pilot" not in server.log.read_bytes()[start_bytes:]


def test_a_wrong_password(site, server, used, tmp_path):
    credentials = tmp_path / "credentials"
    credentials.touch(0o600)
    credentials.write_text("pilot:quite wrong\n")
    wrong = Used(server, {**used.knobs, "OPENCONNECT_CREDENTIALS_FILE": credentials})
    done = site.node.run(wrong.run_argv(["true"], "-v"), timeout_seconds=60)
    assert done.returncode == 86, done.stderr
    assert "does not let us in" in done.stderr
    assert "quite wrong" not in done.stderr


def test_a_certificate_that_is_not_known(site, server, other):
    with other(certificate=True) as strict:
        pair = {"CERTIFICATE": server.client_certificate, "KEY": server.client_key}
        strict.knobs.update({f"OPENCONNECT_{name}_FILE": path for name, path in pair.items()})
        argv = strict.run_argv(["true"], "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=8")
        done = site.node.run(argv, timeout_seconds=60)
    assert done.returncode == 69, done.stderr
    assert "check that it runs, and knows HTCONDOR_VPN_OPENCONNECT_CERTIFICATE_FILE" in done.stderr


def test_a_certificate_in_files_whose_names_are_not_utf8(site, server, other, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    with other(certificate=True) as strict:
        for name, path in {"CERTIFICATE": strict.server.client_certificate, "KEY": strict.server.client_key}.items():
            strict.knobs[f"OPENCONNECT_{name}_FILE"] = shutil.copy(path, folder)
        done = site.node.run(strict.run_argv(["true"]), timeout_seconds=60)
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_before_anything_is_started(site, server, used, tmp_path):
    (tmp_path / "open").write_text("pilot:x\n")
    (tmp_path / "open").chmod(0o644)
    nothing = {name: value for name, value in used.knobs.items() if "CREDENTIALS" not in name}
    for knobs, code, words in (
        ({**used.knobs, "OPENCONNECT_CREDENTIALS_FILE": tmp_path / "open"}, 79, "chmod 600"),
        (nothing, 78, "nothing says how the VPN server knows us"),
        ({**used.knobs, "OPENCONNECT_SERVERS": ""}, 78, "no VPN server is configured"),
        ({**used.knobs, "GATEWAY_PIN": ""}, 78, "nothing says how to know them"),
        ({**nothing, "OPENCONNECT_CERTIFICATE_FILE": tmp_path / "open"}, 79, "chmod 600"),
    ):
        done = site.node.run(Used(server, knobs).run_argv(["true"]), timeout_seconds=60)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_its_password_is_nowhere_to_be_seen(pilot):
    """Neither in a command line nor in an environment nor in the log."""
    seen = (pilot.run_dir / "run.log").read_bytes()
    for name in ("cmdline", "environ"):
        seen += Path(f"/proc/{client(pilot)}/{name}").read_bytes()
    assert PASSWORD.encode() not in seen
    assert b"openconnect_client" in seen
    pilot.end()
