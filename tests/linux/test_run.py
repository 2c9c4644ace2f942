"""`htcondor-vpn run` on the simulated node: what COMMAND gets, what comes back, and what is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.host import outer_id
from htcondor_vpn.testbed.logs import wait_for_content, wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT, url
from htcondor_vpn.testbed.services.oddities import REFUSED_PORT


@pytest.fixture
def run(site, gateway):
    """Runs a command in the tunnel on the node, and returns what it left: code (negative: signal) and output."""

    def run(*command, options=(), **more):
        return site.node.run(gateway.run_argv(command, *options), **more)

    return run


def python(code):
    return sys.executable, "-c", code


@pytest.mark.parametrize("code", [0, 1, 2, 64, 77, 126, 127, 128, 255])
def test_the_exit_code_is_the_commands(run, code):
    assert run("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "USR1"])
def test_a_death_by_signal_is_the_commands(run, name):
    assert run("sh", "-c", f"kill -{name} $$").returncode == -signal.Signals[f"SIG{name}"]


def test_signals_reach_the_command(site, gateway, tmp_path):
    log = tmp_path / "log"
    log.touch()
    script = 'trap "echo got usr1" USR1; trap "echo got term; exit 9" TERM; echo ready; while :; do read line; done'
    argv = gateway.run_argv(["bash", "-c", script])
    process = site.node.start(argv, log=log, stdin=subprocess.PIPE)
    wait_for_log(log, b"^ready$", process)
    process.send_signal(signal.SIGUSR1)
    wait_for_log(log, b"^got usr1$", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 9
    process.stdin.close()


LEAVES = 'trap "" TERM HUP; (sleep {}; echo ended) & echo left; exit 7'


@pytest.mark.parametrize(("seconds", "said"), [("0", ["left"]), ("1 min", ["left", "ended"])])
def test_what_the_command_leaves_running_may_end_by_itself(run, seconds, said):
    it_takes = 1000 if seconds == "0" else 1.5
    options = ["--set", f"HTCONDOR_VPN_WAIT_AFTER_COMMAND={seconds}"]
    done = run("sh", "-c", LEAVES.format(it_takes), options=options)
    assert (done.returncode, done.stdout.split()) == (7, said)


def test_what_does_not_end_by_itself_is_killed(run):
    begin = time.monotonic()
    done = run("sh", "-c", "sleep 1000 & exit 7", options=["--set", "HTCONDOR_VPN_WAIT_AFTER_COMMAND=1"])
    assert done.returncode == 7
    assert time.monotonic() - begin > 1


def test_what_ended_together_with_the_command_is_not_awaited(site, gateway, tmp_path):
    """An orphan and COMMAND have both ended by the time that the pilot looks."""
    log = tmp_path / "log"
    log.touch()
    os.mkfifo(tmp_path / "go")
    (tmp_path / "orphan").write_text("echo orphan $$; read line <go")
    lines = "sh -c 'sh orphan &'; echo command $$; read line; exit 7"
    argv = gateway.run_argv(["sh", "-c", lines], "--set", "HTCONDOR_VPN_WAIT_AFTER_COMMAND=1 h")
    process = site.node.start(argv, cwd=tmp_path, log=log, stdin=subprocess.PIPE)
    orphan, command = (
        wait_for_content(log, lambda said, name=name: re.search(rb"(?m)^%s (\d+)$" % name, said), name, process)[1]
        for name in (b"orphan", b"command")
    )
    process.send_signal(signal.SIGSTOP)
    (tmp_path / "go").write_text("\n")
    wait_until("the orphan has ended", 60, lambda: has_ended(orphan) or None)
    process.stdin.close()
    wait_until("COMMAND has ended", 60, lambda: has_ended(command) or None)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 7


def has_ended(pid):
    return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_signal_ends_the_waiting(site, gateway, tmp_path):
    log = tmp_path / "log"
    log.touch()
    options = ["--set", "HTCONDOR_VPN_WAIT_AFTER_COMMAND=1 h", "-v"]
    process = site.node.start(gateway.run_argv(["sh", "-c", "sleep 1000 & exit 7"], *options), log=log)
    wait_for_log(log, b"COMMAND ended with", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 7


def test_the_command_is_the_same_user_without_a_capability(run):
    said = run("sh", "-c", "id -u; grep -E '^Cap(Inh|Prm|Eff|Amb)|^NoNewPrivs' /proc/self/status").stdout.split()
    assert said[0] == str(outer_id("uid"))
    assert said[1:] == "CapInh: 0 CapPrm: 0 CapEff: 0 CapAmb: 0 NoNewPrivs: 1".replace(" 0", " " + 16 * "0").split()


def test_no_interface_inside_leads_anywhere(run):
    lines = run("cat", "/proc/net/dev").stdout.splitlines()
    # What jobs' traffic is shaped on comes back to where it was redirected from.
    assert {line.split(":")[0].strip() for line in lines[2:]} == {"lo", "htvup", "htvdown"}


def test_nothing_is_paced_on_its_way_to_the_engine(run):
    assert run("cat", "/proc/sys/net/ipv4/tcp_congestion_control").stdout.strip() in ("cubic", "reno")


def test_input_output_arguments_folder_and_environment_are_passed_on(run, tmp_path):
    done = run(
        "sh", "-c", 'cat; pwd; echo "$0" "$1" "$MINE"; echo oops >&2', "a b", "$HOME",
        stdin="typed\n", cwd=tmp_path, env={"MINE": "x y"},
    )  # fmt: skip
    assert done.stdout == f"typed\n{tmp_path}\na b $HOME x y\n"
    assert done.stderr == "oops\n"


def test_state_json_inside(run):
    state = json.loads(run("sh", "-c", 'cat "$HTCONDOR_VPN_RUN_DIR/state.json"').stdout)
    assert state["state"] == "up"
    assert state["gateway"] == f"{plan.DMZ_INSIDE.v4}:8443"
    assert state["families"] == ["ipv4", "ipv6"]
    assert state["latency_ms"] > 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_name_that_the_node_cannot_resolve(site, services, run, family):
    where = url("/bytes/1000000")
    outside = site.node.run(["curl", "-sS", f"-{family}", "-m", "3", where])
    assert outside.returncode != 0
    inside = run("curl", "-sS", f"-{family}", "-o", "/dev/null", "-w", "%{size_download} %{remote_ip}", where)
    address = plan.WORLD["http"].v4 if family == 4 else plan.WORLD["http"].v6
    assert inside.stdout == f"1000000 {address}", inside.stderr


def test_hundreds_of_names_at_once(services, run):
    """As when many jobs start together. None is asked again, so that one which got lost would stay unanswered.

    Three times at most: an engine that is held up while they come loses what its socket has no room for.
    """
    code = (
        "import socket, threading\n"
        "found = []\n"
        "def look_up(n): found.append(socket.getaddrinfo(f'n{n}.any.site.example', 80))\n"
        "threads = [threading.Thread(target=look_up, args=(n,)) for n in range(300)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(len(found))\n"
    )
    seen = []
    while len(seen) < 3 and "300" not in seen:
        done = run(*python(code), env={"RES_OPTIONS": "attempts:1 timeout:30"}, timeout_seconds=90)
        seen.append(done.stdout.strip())
    assert "300" in seen, (seen, done.stderr)


def test_a_port_that_refuses_is_reported(services, run):
    code = f"import socket; socket.create_connection(('203.0.113.20', {REFUSED_PORT}), 20)"
    assert "ConnectionRefusedError" in run(*python(code)).stderr


@pytest.mark.parametrize("target", ["127.0.0.1", "169.254.169.254", str(plan.DMZ_INSIDE.v4), str(plan.NODE.v4)])
def test_neither_the_gateway_nor_its_surroundings_can_be_reached(run, target):
    done = run("curl", "-sS", "-m", "5", f"http://{target}:8443/")
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.fixture
def gateway_without_udp(site, tmp_path, monkeypatch):
    """A gateway of before there was UDP."""
    program = (
        "import sys\n"
        "from htcondor_vpn.cli.main import main\n"
        "from htcondor_vpn.gateway.serving.exchange import Exchange\n"
        "real = Exchange.answer_json\n"
        "async def older(self, status, value): value.pop('udp', None); await real(self, status, value)\n"
        "Exchange.answer_json = older\n"
        "sys.exit(main())"
    )
    monkeypatch.setattr("htcondor_vpn.testbed.gateway.PORT", 8444)
    with SiteGateway(site.dmz, tmp_path) as gateway:
        gateway.stop()
        with monkeypatch.context() as patch:
            patch.setattr("htcondor_vpn.testbed.gateway.vpn_command", lambda *words: [*python(program), *words])
            gateway.start()
        yield gateway


def test_datagrams_are_refused_at_once_where_the_gateway_has_no_udp(site, gateway_without_udp):
    code = (
        "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
        "s.connect(('203.0.113.53', 53)); s.send(b'x')\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(type(error).__name__, error.errno)"
    )
    import errno

    done = site.node.run(gateway_without_udp.run_argv(python(code)))
    assert done.stdout.split()[-1] in (str(errno.EHOSTUNREACH), str(errno.EACCES))


def test_the_hosts_own_listeners_are_out_of_reach(site, run):
    """An abstract UNIX socket belongs to a network namespace, and a service on the node's loopback too."""
    server = site.node.start(
        python(
            "import socket,time\ns=socket.create_server(('127.0.0.1', 7777))\nprint('ready', flush=True)\ns.accept()"
        ),
        stdout=subprocess.PIPE,
    )
    assert server.stdout.readline() == b"ready\n"
    done = run(*python("import socket; socket.create_connection(('127.0.0.1', 7777), 20)"))
    assert "ConnectionRefusedError" in done.stderr
    server.kill()
    server.wait()
    server.stdout.close()


def test_what_the_command_sends_last_still_arrives(site, services, run):
    """COMMAND ends with its connection's buffers full, on a link that takes a second for them."""
    code = (
        "import socket\n"
        f"connection = socket.create_connection(('http.{plan.ZONE}', {HTTP_PORT}))\n"
        "connection.sendall(b'PUT /upload HTTP/1.0\\r\\nHost: last\\r\\nContent-Length: 1000000\\r\\n\\r\\n')\n"
        "connection.sendall(bytes(1000000))\n"
    )
    site.link.shape(10)
    try:
        assert run(*python(code)).returncode == 0
        services.http_ledger.wait_for(lambda entry: entry["host"] == "last" and entry["bytes_in"] == 1_000_000)
    finally:
        site.link.shape()


@pytest.mark.parametrize("folder", ["/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon"])
def test_the_hosts_name_services_are_hidden(site, run, folder):
    site.node.run(["mkdir", "-p", folder], as_root=True, check=True)
    site.node.run(["touch", f"{folder}/socket"], as_root=True, check=True)
    assert run("ls", folder).stdout == ""
    assert site.node.run(["ls", folder]).stdout == "socket\n"


def test_what_the_command_leaves_behind_is_ended(site, run, tmp_path):
    before = set(site.processes())
    assert run("sh", "-c", "setsid sleep 1000 & exit 3").returncode == 3
    assert set(site.processes()) <= before  # of which some may have been ending


def test_orphans_do_not_pile_up_as_zombies(run):
    """As each job's last hook would, whose starter ends before it."""
    code = (
        "import os, subprocess, time\n"
        "left = [subprocess.check_output(['sh', '-c', 'sleep 1000 >&- & echo $!']) for _ in range(3)]\n"
        "def orphans(): return open(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read().split()\n"
        "deadline = time.monotonic() + 60\n"
        "print(len(orphans()))\n"
        "for pid in left: os.kill(int(pid), 9)\n"
        "while len(orphans()) > 3 and time.monotonic() < deadline: time.sleep(0.05)\n"
        "print(len(orphans()))\n"  # engine, broker, and this process
    )
    assert run(*python(code), timeout_seconds=90).stdout == "6\n3\n"


def test_a_run_that_is_killed_leaves_nothing(site, gateway, tmp_path):
    before = set(site.processes())
    log = tmp_path / "log"
    log.touch()
    script = "setsid sleep 1000 & echo ready $HTCONDOR_VPN_RUN_DIR; sleep 1000"
    process = site.node.start(gateway.run_argv(["sh", "-c", script]), log=log)
    folder = Path(os.fsdecode(wait_for_log(log, rb"^ready (.*)$", process)[1]))
    pidfds = [os.pidfd_open(pid) for pid in set(site.processes()) - before - {process.pid}]
    assert len(pidfds) >= 4
    process.kill()
    process.wait()
    for pidfd in pidfds:
        _wait_for_end(pidfd)
    assert set(site.processes()) <= before  # of which some may have been ending
    assert not folder.exists()


def _wait_for_end(pidfd, timeout_seconds=60):
    import select

    assert select.select([pidfd], [], [], timeout_seconds)[0], "a process did not end"
    os.close(pidfd)
