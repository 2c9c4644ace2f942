"""A job in its own network: what it sees, how it begins, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobnet_pilot import HERE, Pilot, finished, until

pytestmark = pytest.mark.linux

CLIENT = (sys.executable, str(HERE / "traffic_client.py"))


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path) as pilot:
        yield pilot


def test_job_has_a_network_of_its_own_and_no_capability(pilot: Pilot) -> None:
    told = pilot.run_job("/bin/sh", "-c", "cat /proc/net/dev /proc/self/status; id -u; readlink /proc/self/ns/net")
    assert told["status"] == 0, told["err"]
    assert "eth0:" in told["out"]
    assert "htvj" not in told["out"]
    assert "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000" in told["out"]
    assert "CapAmb:\t0000000000000000" in told["out"]
    uid, namespace = told["out"].split()[-2:]
    assert uid == str(os.getuid() or 1000)
    assert namespace != os.readlink("/proc/self/ns/net")


def test_job_paces_nothing_on_the_way_to_the_engine(pilot: Pilot) -> None:
    """Whatever congestion control the host has, which each new namespace gets."""
    told = pilot.run_job("/bin/cat", "/proc/sys/net/ipv4/tcp_congestion_control")
    assert told["out"].strip() in ("cubic", "reno")


def test_job_reaches_the_resolver_and_both_families(pilot: Pilot) -> None:
    for address in ("198.18.0.1", "fd68:7463:6f6e::1"):
        told = pilot.run_job(*CLIENT, "get", "100000", address)
        assert told["status"] == 0, told["err"]


def test_family_that_the_tunnel_does_not_carry_is_unreachable_at_once(tmp_path: Path) -> None:
    with Pilot(tmp_path, families=("ipv4",)) as pilot:
        assert pilot.run_job(*CLIENT, "get", "1000")["status"] == 0
        told = pilot.run_job(*CLIENT, "get", "1000", "2001:db8::1")
        assert "unreachable" in told["err"].lower() or "No route to host" in told["err"]
        assert told["took_ms"] < 20_000  # who waits in vain does so for 30 s


def test_family_ipv6_alone_still_reaches_the_resolver(tmp_path: Path) -> None:
    with Pilot(tmp_path, families=("ipv6",)) as pilot:
        assert pilot.run_job(*CLIENT, "get", "1000", "198.18.0.1")["status"] == 0
        told = pilot.run_job(*CLIENT, "get", "1000", "192.0.2.1")
        assert "unreachable" in told["err"].lower() or "No route to host" in told["err"]


@pytest.mark.parametrize("code", [0, 1, 7, 75, 126, 127, 128, 255])
def test_exit_code_is_the_jobs(pilot: Pilot, code: int) -> None:
    assert pilot.run_job("/bin/sh", "-c", f"exit {code}")["status"] == code


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "ABRT", "HUP", "USR1", "PIPE", "RTMAX"])
def test_death_by_signal_is_the_jobs(pilot: Pilot, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    told = pilot.run_job(sys.executable, "-c", f"import os, signal; signal.signal({int(number)}, signal.SIG_DFL) "
                         f"if {int(number)} != 9 else 0; os.kill(os.getpid(), {int(number)})")  # fmt: skip
    assert told["status"] == -number


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "TSTP", "CONT", "RTMIN"])
def test_signals_reach_the_job(pilot: Pilot, name: str) -> None:
    number = int(signal.Signals[f"SIG{name}"])
    scratch = pilot.scratch()
    ready = scratch / "ready"
    starter = pilot.start_job(
        sys.executable, "-c",
        "import pathlib, signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        f"sys.exit(100 + signal.sigwait([{number}]))",
        scratch=scratch,
    )  # fmt: skip
    assert until(ready.exists)
    _, wrapper = (int(pid) for pid in (scratch / "pids").read_text().split())
    os.kill(wrapper, number)
    assert finished(starter)["status"] == 100 + number


#: Signals 1 to 31; make(1) has its programs ignore two of the C library's own above them.
STANDARD_SIGNALS = (1 << 31) - 1


def test_job_starts_with_the_signals_of_the_starter(pilot: Pilot) -> None:
    told = pilot.run_job("/bin/sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status")
    blocked, ignored = (int(word, 16) for word in told["out"].split()[1::2])
    assert (blocked, ignored & STANDARD_SIGNALS) == (0, 0)


def test_descriptors_do_not_leak_into_the_job(pilot: Pilot) -> None:
    told = pilot.run_job(sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    assert told["out"].strip() == "[0, 1, 2, 3]"  # 3 is the folder that it lists


@pytest.mark.parametrize(("name", "code"), [("/no/such/program", 127), ("/etc/hostname", 126)])
def test_job_that_cannot_be_executed(pilot: Pilot, name: str, code: int) -> None:
    scratch = pilot.scratch()
    told = pilot.run_job(name, scratch=scratch)
    assert told["status"] == code
    assert name in told["err"]
    assert name in (scratch / ".job_wrapper_failure").read_text()
    assert until(lambda: not pilot.links())


def test_without_a_broker_no_job_runs(pilot: Pilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = pilot.run_dir / "libexec" / "job-wrapper"
    wrapper.write_text(wrapper.read_text().replace("START_SECONDS = 20.0", "START_SECONDS = 0.5"))
    pilot.kill_broker()
    scratch, ran = pilot.scratch(), tmp_path / "ran"
    told = pilot.run_job("/bin/touch", str(ran), scratch=scratch)
    assert told["status"] == 75
    assert "the job has no network" in told["err"]
    assert "the job has no network" in (scratch / ".job_wrapper_failure").read_text()
    assert not ran.exists()
    pilot.start_broker()


def test_job_that_asks_for_nonsense_does_not_run(pilot: Pilot, tmp_path: Path) -> None:
    told = pilot.run_job("/bin/touch", str(tmp_path / "ran"), ad="VpnBandwidthMbps = -1")
    assert told["status"] == 75
    assert "VpnBandwidthMbps is -1" in told["err"]
    assert not (tmp_path / "ran").exists()
    assert not pilot.links()


def test_site_wrapper_is_chained(tmp_path: Path) -> None:
    site = tmp_path / "site-wrapper"
    site.write_text('#!/bin/sh\necho "site wrapper"\nexec "$@"\n')
    site.chmod(0o755)
    with Pilot(tmp_path, job_wrapper=str(site)) as pilot:
        assert pilot.run_job("/bin/echo", "job")["out"] == "site wrapper\njob\n"


def test_chirp_works_from_within_the_job(pilot: Pilot) -> None:
    told = pilot.run_job(
        sys.executable, "-c",
        "import os, socket\n"
        "host, port, cookie = open(os.environ['_CONDOR_CHIRP_CONFIG']).read().split()\n"
        "with socket.create_connection((host, int(port)), timeout=60) as s, s.makefile('rwb') as f:\n"
        "    f.write(f'cookie {cookie}\\nset_job_attr_delayed ChirpMine 42\\n'.encode())\n"
        "    f.flush()\n"
        "    assert (f.readline(), f.readline()) == (b'0\\n', b'0\\n')\n",
    )  # fmt: skip
    assert told["status"] == 0, told["err"]
    assert told["chirped"]["ChirpMine"] == "42"


@pytest.mark.parametrize(
    "said",
    [
        ("set_job_attr_delayed ChirpNetworkBytesOut 1\n",),
        ("set_job_attr_delayed \t networkOutputMB 1\n",),
        ("set_job_attr ChirpMine 1\nset_job_attr_delayed Ch\\irp\\Net", "workBytesOut 1\n"),
        ("write 1 4\n....set_job_attr ChirpNetworkBytesOut 1\n",),
    ],
)
def test_a_job_cannot_write_what_it_is_charged_with(pilot: Pilot, said: tuple[str, ...]) -> None:
    """Not even by a process that it leaves behind, which would have the last word after the broker."""
    chirp = (
        "import os, socket, sys\n"
        "host, port, cookie = open(os.environ['_CONDOR_CHIRP_CONFIG']).read().split()\n"
        "with socket.create_connection((host, int(port)), timeout=60) as s:\n"
        "    s.sendall(f'cookie {cookie}\\n'.encode())\n"
        "    assert s.recv(2) == b'0\\n'\n"
        "    try:\n"
        f"        for words in {said!r}: s.sendall(words.encode())\n"
        "        while s.recv(100): pass\n"
        "    except ConnectionError:\n"
        "        pass\n"
        "print('cut')\n"
    )
    told = pilot.run_job(sys.executable, "-c", chirp)
    assert told["out"] == "cut\n", told["err"]
    chirped = told["chirped"]
    assert int(chirped["ChirpNetworkBytesOut"]) != 1
    assert float(chirped["NetworkOutputMb"]) * 1e6 == pytest.approx(int(chirped["ChirpNetworkBytesOut"]))
    assert "what it is charged with" in pilot.log()


def test_job_without_chirp(pilot: Pilot) -> None:
    scratch = pilot.scratch()
    (scratch / ".chirp.config").symlink_to("/dev/null")
    assert pilot.run_job("/bin/true", scratch=scratch)["status"] == 0


def test_sshd_joins_the_jobs_network_and_is_not_counted(pilot: Pilot, tmp_path: Path) -> None:
    sshd = tmp_path / "sshd"
    sshd.write_text("#!/bin/sh\nreadlink /proc/self/ns/net\ngrep CapEff /proc/self/status\n")
    sshd.chmod(0o755)
    starter = (
        "import os, subprocess, sys\n"
        "wrapper, sshd = sys.argv[1:]\n"
        "job = subprocess.Popen([wrapper, '/bin/sh', '-c', 'readlink /proc/self/ns/net; read line'],\n"
        "                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "print(job.stdout.readline().decode(), end='', flush=True)\n"
        "subprocess.run([wrapper, sshd], check=True)\n"
        "job.communicate(b'go\\n')\n"
    )
    wrapper = str(pilot.run_dir / "libexec" / "job-wrapper")
    told = pilot.popen(
        [sys.executable, "-c", starter, wrapper, str(sshd)], stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
    )
    job, session, capabilities = told.communicate(timeout=100)[0].decode().splitlines()
    assert job == session
    assert capabilities.endswith("0000000000000000")
    assert pilot.log().count("ended: received") == 1


def test_signal_that_the_starter_ignores_is_ignored_by_the_job(pilot: Pilot) -> None:
    wrapper = str(pilot.run_dir / "libexec" / "job-wrapper")
    script = f"trap '' HUP INT; exec {wrapper} /bin/sh -c 'grep SigIgn /proc/self/status'"
    done = pilot.popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]})
    assert int(done.communicate(timeout=60)[0].split()[1], 16) & STANDARD_SIGNALS == 0b11


def test_chirp_client_that_does_not_wait_for_its_answer_needs_no_end(pilot: Pilot) -> None:
    told = pilot.run_job(
        sys.executable, "-c",
        "import os, socket\n"
        "host, port, cookie = open(os.environ['_CONDOR_CHIRP_CONFIG']).read().split()\n"
        "for _ in range(20):\n"
        "    with socket.create_connection((host, int(port)), timeout=60) as s:\n"
        "        s.sendall(f'cookie {cookie}\\nset_job_attr_delayed ChirpMine 42\\n'.encode())\n"
        "with socket.create_connection((host, int(port)), timeout=60) as s, s.makefile('rwb') as f:\n"
        "    f.write(f'cookie {cookie}\\nset_job_attr_delayed ChirpLast 43\\n'.encode())\n"
        "    f.flush()\n"
        "    assert (f.readline(), f.readline()) == (b'0\\n', b'0\\n')\n",
    )  # fmt: skip
    assert told["status"] == 0, told["err"]
    assert (told["chirped"]["ChirpMine"], told["chirped"]["ChirpLast"]) == ("42", "43")
    assert "not connected" not in pilot.log()
