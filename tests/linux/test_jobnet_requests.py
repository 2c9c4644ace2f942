"""What hooks get, and what the broker says to those who should not ask."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobnet_pilot import Pilot, until

pytestmark = pytest.mark.linux


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path) as pilot:
        yield pilot


@pytest.mark.parametrize(
    ("value", "code", "word"),
    [
        ("-5", 2, "-5"),
        ("0", 2, "0"),
        ("0.0001", 3, "0.0001"),
        ("1000.5", 4, "1000 Mbit/s"),
        ("1e300", 4, "1000 Mbit/s"),
        ('real("NaN")', 1, "nan"),
        ('real("INF")', 1, "inf"),
        ('"50"', 1, "50"),
        ("10 + 20", 1, "10 + 20"),
        ("true", 1, "True"),
        ("Target.Cpus", 1, "Target.Cpus"),
    ],
)
def test_request_that_makes_no_sense_holds_the_job(pilot: Pilot, value: str, code: int, word: str) -> None:
    told = pilot.run_hook("prepare-job", f"VpnBandwidthMbps = {value}")
    first, second = told["out"].splitlines()
    assert first == f"HookStatusCode = {code}"
    assert second.startswith('HookStatusMessage = "VpnBandwidthMbps is ')
    assert word in second
    assert told["status"] == 0


@pytest.mark.parametrize("value", ["5", "5.0", "5.000000000000000E+00", "1000", "undefined"])
def test_request_that_is_granted_says_nothing(pilot: Pilot, value: str) -> None:
    assert pilot.run_hook("prepare-job", f"vpnbandwidthmbps = {value}")["out"] == ""


def test_ad_that_is_none_holds_the_job(pilot: Pilot) -> None:
    assert pilot.run_hook("prepare-job", "this is no ad")["out"].startswith("HookStatusCode = 5\n")


def test_job_that_could_not_be_executed_is_held_when_it_comes_again(pilot: Pilot) -> None:
    ad = 'GlobalJobId = "ap.example.org#12.0#1795206893"'
    assert pilot.run_hook("prepare-job", ad)["out"] == ""
    assert pilot.run_job("/no/such/program", ad=ad)["status"] == 127
    assert pilot.run_hook("prepare-job", ad.replace("12.0", "13.0"))["out"] == ""
    first, second = pilot.run_hook("prepare-job", ad)["out"].splitlines()
    assert first == "HookStatusCode = 6"
    assert second == 'HookStatusMessage = "/no/such/program cannot be executed: No such file or directory"'
    assert pilot.run_hook("prepare-job", ad)["out"] == "", "a released job gets another chance"


def test_job_without_a_name_that_cannot_be_executed(pilot: Pilot) -> None:
    assert pilot.run_job("/no/such/program")["status"] == 127
    assert pilot.run_hook("prepare-job")["out"] == ""


def test_big_ad(pilot: Pilot) -> None:
    ad = 'Environment = "' + "x" * 3_000_000 + '"\nVpnBandwidthMbps = -1'
    assert pilot.run_hook("prepare-job", ad)["out"].startswith("HookStatusCode = 2\n")


def test_job_goes_back_while_the_tunnel_is_not_up(pilot: Pilot) -> None:
    pilot.tell_state("down")
    out = pilot.run_hook("prepare-job")["out"]
    assert out == 'HookStatusCode = 301\nHookStatusMessage = "the tunnel of this slot is down"\n'
    (pilot.run_dir / "state.json").write_text("{")
    assert pilot.run_hook("prepare-job")["out"].startswith("HookStatusCode = 301\n")


def test_job_goes_back_when_there_is_no_broker(pilot: Pilot) -> None:
    pilot.kill_broker()
    told = pilot.run_hook("prepare-job")
    assert told["status"] == 0
    assert told["out"].startswith("HookStatusCode = 300\n")
    told = pilot.run_hook("update-job-info")
    assert (told["status"], told["out"]) == (0, "")
    pilot.start_broker()


def _say(pilot: Pilot, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(pilot.run_dir / "broker.sock"))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"hello\n",
        b"start\n",
        b"start -1\n",
        b"start 99999999999999999999\n",
        b"start 3\nabc",
        b"start 100\nabc",
        b"x" * 100_000,
        b"\xff\xfe 0\n",
        b"nothing 0\n",
        b"start 0\n",
        b"prepare 0\n",
        b"join 0\n",
        b"end 0\n",
    ],
)
def test_nonsense_harms_nobody(pilot: Pilot, data: bytes) -> None:
    try:
        answer = _say(pilot, data)  # this process is outside of the inner namespace: it may ask for nothing
    except (BrokenPipeError, ConnectionResetError):
        answer = b""
    assert answer == b"" or answer.startswith(b"no ")
    assert pilot.run_job("/bin/true")["status"] == 0


def test_silent_clients_do_not_block_others(pilot: Pilot) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    for client in clients:
        client.connect(str(pilot.run_dir / "broker.sock"))
        client.send(b"prepare 100000\nhalf")
    assert pilot.run_job("/bin/true")["status"] == 0
    for client in clients:
        client.close()


ASK = """
import array, os, socket, sys
verb, path = sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    body = sys.argv[3].encode().decode('unicode_escape').encode() if len(sys.argv) > 3 else b''
    data = f'{verb} {len(body)}\\n'.encode() + body
    if verb in ('start', 'resume'):
        rights = array.array('i', [os.open('/proc/self/ns/net', os.O_RDONLY)])
        client.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    else:
        client.sendall(data)
    print(client.recv(65536).decode())
"""


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("prepare", "\\nVpnBandwidthMbps = 1"),
        ("update", ""),
        ("join", ""),
        ("start", "chirp \\n"),
        ("resume", "number 0\\nstarter 1\\nchirp \\n"),
    ],
)
def test_a_job_may_ask_for_nothing(pilot: Pilot, verb: str, body: str) -> None:
    told = pilot.run_job(sys.executable, "-c", ASK, verb, str(pilot.run_dir / "broker.sock"), body)
    assert told["status"] == 0, told["err"]
    assert told["out"].startswith("no ")
    assert told["chirped"]["ChirpNetworkBytesIn"].isdigit()


def test_a_job_cannot_get_a_second_network(pilot: Pilot) -> None:
    again = (
        "import ctypes, os, sys\n"
        "uid, gid = os.getuid(), os.getgid()\n"
        "assert ctypes.CDLL(None).unshare(0x50000000) == 0\n"
        "open('/proc/self/setgroups', 'w').write('deny')\n"
        "open('/proc/self/uid_map', 'w').write(f'{uid} {uid} 1')\n"
        "open('/proc/self/gid_map', 'w').write(f'{gid} {gid} 1')\n"
    )
    told = pilot.run_job(sys.executable, "-c", again + ASK, "start", str(pilot.run_dir / "broker.sock"), "chirp \\n")
    assert told["status"] == 0, told["err"]
    assert "was not made by one of the pilot's processes" in told["out"]


def test_a_job_cannot_look_into_its_wrapper(pilot: Pilot) -> None:
    told = pilot.run_job(
        "/bin/sh", "-c", "ls /proc/$PPID/fd; cat /proc/$PPID/mem; nsenter -t $PPID -U -n --preserve-credentials true"
    )
    assert told["status"] != 0
    assert told["err"].count("ermission denied") + told["err"].count("not permitted") >= 2, told["err"]


def test_the_supervisor_hears_how_many_jobs_there_are(pilot: Pilot) -> None:
    assert pilot.run_job("/bin/true")["status"] == 0
    told: list[object] = []
    while len(told) < 2:
        message = json.loads(pilot.control.recv(4096))
        told += [message] if message != {"lives": True} else []
    assert told == [{"jobs": 1}, {"jobs": 0}]


def test_socket_is_for_its_owner_alone(pilot: Pilot) -> None:
    assert os.stat(pilot.run_dir / "broker.sock").st_mode & 0o777 == 0o600


def test_wrapper_without_a_command(pilot: Pilot) -> None:
    done = pilot.popen([str(pilot.run_dir / "libexec" / "job-wrapper")], stderr=subprocess.PIPE)
    assert b"without a command" in done.communicate(timeout=60)[1]
    assert done.returncode == 64
    assert until(lambda: not pilot.links())
