"""`htcondor-vpn gateway` as a process: what it prints, what it returns, how it ends."""

import contextlib
import os
import re
import selectors
import signal
import socket
import stat
import subprocess
import sys

import pytest

from htcondor_vpn.wire.trust import read_pins

TIMEOUT_SECONDS = 60
COMMAND = [sys.executable, "-m", "htcondor_vpn.cli.main", "gateway"]


@pytest.fixture
def command(tmp_path):
    """Runs one verb on a folder of the test's own."""

    def run(*arguments, **environ):
        return subprocess.run(
            [*COMMAND, *arguments, "--dir", str(tmp_path / "gateway")],
            capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env={**os.environ, **environ}, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def started(tmp_path):
    """Starts gateways and waits until they are ready: `with started(...) as (process, lines)`."""

    @contextlib.contextmanager
    def start(*arguments):
        argv = [*COMMAND, *arguments, "--dir", str(tmp_path / "gateway")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process, read_until_ready(process)
            finally:
                process.kill()

    return start


def read_until_ready(process):
    text = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not text.endswith("ready\n"):
            assert selector.select(TIMEOUT_SECONDS), text
            piece = os.read(process.stdout.fileno(), 65536).decode()  # of a line, perhaps
            assert piece, process.stderr.read()
            text += piece
    return text.splitlines()


def test_a_gateway_starts_and_ends(started, command, tmp_path, ipv6):
    with started("--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--name", "gw.example.org") as (process, lines):
        assert re.fullmatch(r"listening on 127\.0\.0\.1:[0-9]+", lines[0])
        assert re.fullmatch(r"listening on \[::1\]:[0-9]+", lines[1])
        assert (lines[2],) == read_pins(tmp_path / "gateway" / "gateway.pin")
        assert lines[3:] == ["ready"]
        process.terminate()
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert process.stdout.read() == ""
    assert command("pin").stdout == lines[2] + "\n"


def test_a_gateway_goes_on_though_nobody_reads_what_it_says(started, command):
    """It says it again when it is restarted."""
    with started("--listen", "127.0.0.1:0") as (process, _):
        process.stdout.close()
        process.stderr.close()
        restarted = command("restart")
        assert (restarted.returncode, restarted.stderr) == (0, "")
        assert '"generation": 2' in command("status", "--json").stdout
        process.terminate()
        assert process.wait(TIMEOUT_SECONDS) == 0


@pytest.mark.parametrize("verb", [[], ["run"]])
def test_run_is_what_no_verb_means(started, verb):
    with started(*verb, "--listen", "127.0.0.1:0") as (process, lines):
        assert lines[-1] == "ready"
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_SECONDS) == 0


def test_tokens(command, tmp_path):
    added = command("token", "add", "alice")
    assert (added.returncode, added.stderr) == (0, "")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", added.stdout)
    file = tmp_path / "token"
    written = command("token", "add", "bob", "--expires", "30d", "-o", str(file))
    assert written.returncode == 0
    assert file.read_text().strip() not in written.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rows = [line.split() for line in command("token", "list").stdout.splitlines()]
    assert rows[0] == ["NAME", "MADE", "EXPIRES", "STATE"]
    assert [(row[0], row[2] == "never", row[3]) for row in rows[1:]] == [
        ("alice", True, "good"),
        ("bob", False, "good"),
    ]
    assert command("token", "revoke", "alice").returncode == 0
    again = command("token", "revoke", "alice")
    assert (again.returncode, again.stderr.count("\n")) == (67, 1)


def test_what_a_destination_is_judged_by(command):
    asked = ["203.0.113.9:80", "127.0.0.1:22", "localhost:22", "[::ffff:10.0.0.1]:80", "10.20.0.5:80"]
    knobs = ["--allow", "10.20.0.0/16", "--deny", "203.0.113.0/24 port 25", "--deny", "10.20.1.0/24"]
    checked = command("check", *asked, *knobs)
    rows = [line.split(maxsplit=3) for line in checked.stdout.splitlines()]
    assert rows[:3] == [
        ["DESTINATION", "ADDRESS", "VERDICT", "RULE"],
        ["203.0.113.9:80", "203.0.113.9", "reached", "public"],
        ["127.0.0.1:22", "127.0.0.1", "refused", "loopback"],
    ]
    assert ["[::ffff:10.0.0.1]:80", "10.0.0.1", "refused", "private"] in rows
    assert rows[-1] == ["10.20.0.5:80", "10.20.0.5", "reached", "allowed by 10.20.0.0/16"]
    assert checked.returncode == 1
    assert command("check", "203.0.113.9:80").returncode == 0
    assert command("check", "203.0.113.9:25", "--deny", "203.0.113.0/24 port 25").returncode == 1
    assert command("check", "203.0.113.9").returncode == 64
    assert command("check", "no-such-host.invalid:80").returncode == 68


def test_denials(command):
    assert command("deny", "add", "jti:1234", "idtoken:pilot@pool").returncode == 0
    rows = [line.split()[0] for line in command("deny", "list").stdout.splitlines()]
    assert rows == ["NAME", "idtoken:pilot@pool", "jti:1234"]
    assert command("deny", "remove", "jti:1234").returncode == 0
    again = command("deny", "remove", "jti:1234")
    assert (again.returncode, again.stderr.count("\n")) == (67, 1)
    assert command("deny", "add", "two words").returncode == 67


def test_a_token_that_cannot_be_written_is_no_token(command, tmp_path):
    failed = command("token", "add", "alice", "-o", str(tmp_path / "nowhere" / "token"))
    assert (failed.returncode, failed.stderr.count("\n"), failed.stdout) == (73, 1, "")
    assert "alice" not in command("token", "list").stdout


def test_a_token_is_not_written_over_another(command, tmp_path):
    file = tmp_path / "token"
    assert command("token", "add", "alice", "-o", str(file)).returncode == 0
    before = file.read_text()
    again = command("token", "add", "bob", "-o", str(file))
    assert (again.returncode, again.stderr.count("\n"), str(file) in again.stderr) == (73, 1, True)
    assert file.read_text() == before
    assert "bob" not in command("token", "list").stdout


def test_the_life_of_a_token_has_a_unit(command):
    result = command("token", "add", "alice", "--expires", "30")
    assert (result.returncode, "30d" in result.stderr, result.stderr.count("\n")) == (64, True, 1)
    assert "alice" not in command("token", "list").stdout


def test_a_token_that_nobody_got_is_no_token(command, tmp_path):
    argv = [*COMMAND, "token", "add", "bob", "--dir", str(tmp_path / "gateway")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (64, 1)
    assert "--output" in done.stderr
    assert "bob" not in command("token", "list").stdout


def test_who_has_read_enough_of_a_list_may_go(command, tmp_path):
    command("token", "add", "alice")
    reading, writing = os.pipe()
    os.close(reading)
    argv = [*COMMAND, "token", "list", "--dir", str(tmp_path / "gateway")]
    done = subprocess.run(
        argv, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_option_may_stand_before_the_verb(tmp_path):
    argv = [*COMMAND, "--dir", str(tmp_path / "other"), "token", "add", "alice"]
    assert subprocess.run(argv, capture_output=True, timeout=TIMEOUT_SECONDS, check=False).returncode == 0
    assert (tmp_path / "other" / "tokens.db").exists()


def test_knobs_from_a_file_and_from_the_environment(started, command, tmp_path):
    config = tmp_path / "knobs"
    config.write_text("HTCONDOR_VPN_GATEWAY_LISTEN = 127.0.0.1:0\n")
    with started("--config", str(config)) as (_, lines):
        assert lines[0].startswith("listening on 127.0.0.1:")
    config.write_text("HTCONDOR_VPN_GATEWAY_LISTEN = nonsense\n")
    bad = command("run", "--config", str(config))
    assert (bad.returncode, f"{config}:1" in bad.stderr, bad.stderr.count("\n")) == (78, True, 1)
    bad = command("run", _CONDOR_HTCONDOR_VPN_GATEWAY_ALLOW="10.0.0.0/99")
    assert (bad.returncode, bad.stderr.count("\n")) == (78, 1)
    assert command("run", "--config", str(tmp_path / "none")).returncode == 66


def test_a_port_that_is_taken(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command("run", "--listen", f"127.0.0.1:{port}")
    assert (result.returncode, result.stderr.count("\n")) == (80, 1)
    assert re.search(rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use: .*--listen", result.stderr)


@pytest.mark.parametrize("where", ["203.0.113.1:0", "no-such-host.invalid:0", "[2001:db8::1]:0"])
def test_an_address_that_is_not_here(command, where):
    result = command("run", "--listen", where)
    said = result.returncode, result.stderr.count("\n"), "cannot listen on" in result.stderr
    assert said == (80, 1, True)


def test_a_folder_and_a_key_that_are_too_open(command, tmp_path):
    assert command("pin").returncode == 0
    (tmp_path / "gateway" / "gateway.key").chmod(0o644)
    result = command("pin")
    assert (result.returncode, "chmod 600" in result.stderr, result.stderr.count("\n")) == (73, True, 1)
    (tmp_path / "gateway").chmod(0o755)
    result = command("token", "list")
    assert (result.returncode, "chmod 700" in result.stderr, result.stderr.count("\n")) == (73, True, 1)


def test_a_certificate_without_its_key(command, tmp_path):
    result = command("run", "--cert", str(tmp_path / "crt"))
    assert (result.returncode, result.stderr.count("\n")) == (78, 1)


def test_a_certificate_that_is_none(command, tmp_path):
    """What is wrong is said in one line that can be read, not in a library's words for those who write code."""
    (tmp_path / "crt").write_text("no certificate")
    (tmp_path / "key").write_text("no key")
    (tmp_path / "key").chmod(0o600)
    result = command("run", "--cert", str(tmp_path / "crt"), "--key", str(tmp_path / "key"))
    assert (result.returncode, result.stderr.count("\n"), len(result.stderr) < 200) == (73, 1, True), result.stderr
    assert f"{tmp_path / 'crt'} is not a certificate" in result.stderr
    assert command("pin").returncode == 0
    certificate = tmp_path / "gateway" / "gateway.crt"
    result = command("run", "--cert", str(certificate), "--key", str(tmp_path / "key"))
    assert (result.returncode, result.stderr.count("\n"), len(result.stderr) < 200) == (73, 1, True), result.stderr
    assert f"{tmp_path / 'key'} is not a private key" in result.stderr


def test_that_nobody_could_be_admitted_is_said_once(started):
    with started("--listen", "127.0.0.1:0") as (process, _):
        process.terminate()
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert process.stderr.read().count("there are no tokens yet") == 1


@pytest.mark.parametrize(
    "arguments", [["ledger", "--since", "7"], ["drain", "--timeout", "2"], ["ledger", "--since", "soon"]]
)
def test_a_time_has_a_unit(command, arguments):
    result = command(*arguments)
    assert (result.returncode, result.stderr.count("\n"), arguments[-1] in result.stderr) == (64, 1, True)


@pytest.mark.parametrize("arguments", [["token"], ["token", "add"], ["token", "add", "a", "--expires", "soon"], ["x"]])
def test_a_command_line_that_makes_no_sense(command, arguments):
    result = command(*arguments)
    assert (result.returncode, result.stderr.count("\n")) == (64, 1)


def test_without_the_libraries_of_a_gateway(tmp_path):
    (tmp_path / "cryptography").mkdir()
    (tmp_path / "cryptography" / "__init__.py").write_text("raise ModuleNotFoundError(name='cryptography')")
    result = subprocess.run(
        [*COMMAND, "--dir", str(tmp_path / "gateway")], capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr.count("\n")) == (72, 1)
    assert "htcondor-vpn[gateway]" in result.stderr


def test_the_descriptor_limit_is_raised(started):
    with started("--listen", "127.0.0.1:0") as (process, _):
        with open(f"/proc/{process.pid}/limits", encoding="ascii") as limits:
            (line,) = [line for line in limits if line.startswith("Max open files")]
        soft, hard = line.split()[3:5]
        assert soft == hard
