"""Every error before COMMAND: one line with cause and remedy, a code of its own, nothing left, COMMAND never run."""

import base64
import os
import tempfile
from pathlib import Path

import pytest

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux import namespaces
from htcondor_vpn.linux.programs import find_program


@pytest.fixture
def refused(site, gateway, tmp_path):
    """Runs with options that must fail with `code`, and returns the one line on stderr."""

    def refused(code, *options, command=None, **more):
        marker, temporary = tmp_path / "ran", Path(tempfile.mkdtemp())
        before = set(site.processes())
        argv = gateway.run_argv(command or ["touch", str(marker)], *options)
        done = site.node.run(argv, env={"TMPDIR": str(temporary)}, **more)
        assert done.returncode == code, done.stderr
        assert not marker.exists()
        assert set(site.processes()) <= before  # of which some may have been ending
        temporary.rmdir()
        (line,) = done.stderr.splitlines()
        assert line.startswith("htcondor-vpn: ")
        return line

    return refused


def test_wrong_pin_and_no_credential_is_sent(gateway, refused):
    before = gateway.log.read_text()
    wrong = "pin-sha256:" + base64.b64encode(bytes(32)).decode()
    file = gateway.folder / "wrong.pin"
    file.write_text(wrong + "\n")
    line = refused(76, "--pin-file", str(file))
    assert "another key (pin-sha256:" in line
    assert "no credential was sent" in line
    said = gateway.log.read_text()[len(before) :]
    assert "flow" not in said
    assert "pilot" not in said.replace("pilot.token", "")


def test_wrong_token(refused, tmp_path):
    token = tmp_path / "token"
    token.write_text("x" * 43 + "\n")
    token.chmod(0o600)
    assert "refuses our token" in refused(77, "--token-file", str(token))


def test_a_token_that_we_may_not_read(refused, tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0)
    assert f"chmod 600 {token}" in refused(79, "--token-file", str(token))


def test_revoked_token(gateway, refused, tmp_path):
    token = tmp_path / "token"
    gateway.token("add", "gone", "-o", str(token))
    gateway.token("revoke", "gone")
    assert "refuses our token" in refused(77, "--token-file", str(token))


def test_missing_token(refused, tmp_path):
    assert "No such file" in refused(79, "--token-file", str(tmp_path / "none"))


def test_token_that_others_may_read(refused, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o644)
    line = refused(79, "--token-file", str(token))
    assert "chmod 600" in line
    assert "secret" not in line


def test_gateway_that_refuses(refused):
    line = refused(69, "--gateway", "10.1.0.1:9", "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=6")
    assert "10.1.0.1:9 cannot be reached" in line


def test_gateway_that_is_silent(site, refused):
    site.link.blackhole()
    try:
        line = refused(69, "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=8", "--set", "HTCONDOR_VPN_PROBE_TIMEOUT=1")
    finally:
        site.link.up()
    assert "does not answer within 1 s" in line


def test_gateway_name_that_does_not_resolve(refused):
    line = refused(68, "--gateway", "gateway.invalid:8443", "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=20",
                   "--set", "HTCONDOR_VPN_PROBE_TIMEOUT=15", timeout_seconds=60)  # fmt: skip
    assert "gateway.invalid does not resolve" in line


def test_no_gateway_and_no_trust(site):
    command = ["-m", "htcondor_vpn.cli.main", "run"]
    import sys

    done = site.node.run([sys.executable, *command, "--", "true"])
    assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
    assert "HTCONDOR_VPN_GATEWAYS" in done.stderr
    done = site.node.run([sys.executable, *command, "--gateway", "10.1.0.1:8443", "--", "true"])
    assert done.returncode == 78
    assert "HTCONDOR_VPN_GATEWAY_PIN" in done.stderr


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("HTCONDOR_VPN_CONNECT_TIMEOUT=3 parsec", 78, "HTCONDOR_VPN_CONNECT_TIMEOUT"),
        ("HTCONDOR_VPN_CONNECT_TIMEOUT=-1", 78, "HTCONDOR_VPN_CONNECT_TIMEOUT"),
        ("HTCONDOR_VPN_JOB_UP_MBPS=fast", 78, "HTCONDOR_VPN_JOB_UP_MBPS"),
        ("HTCONDOR_VPN_CONECT_TIMEOUT=3", 78, "HTCONDOR_VPN_CONNECT_TIMEOUT"),
    ],
)
def test_knobs(refused, option, code, words):
    assert words in refused(code, "--set", option)


def test_knob_in_a_file_is_named_with_its_line(refused, tmp_path):
    file = tmp_path / "knobs"
    file.write_text("# fine\nHTCONDOR_VPN_PROBE_INTERVAL = 3 lightyears\n")
    assert f"{file}:2" in refused(78, "--config", str(file))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("wen = true", "wen is no key of [rule a]: did you mean when?"),  # told before anything is started
        ("when = TARGET.Owner = 1", "is no ClassAd expression"),  # told by the broker
    ],
)
def test_mistake_in_the_policy(refused, tmp_path, rule, says):
    policy, config = tmp_path / "policy", tmp_path / "config"
    policy.write_text(f"[rule a]\n{rule}\n")
    config.write_text(f"HTCONDOR_VPN_JOB_POLICY_FILE = {policy}\n")
    line = refused(91, "--config", str(config))
    assert f"{policy}:2: " in line
    assert says in line


def test_unreadable_config(refused, tmp_path):
    assert "cannot be read" in refused(66, "--config", str(tmp_path / "none"))


def test_command_not_found(refused):
    assert "no-such-command" in refused(127, command=["no-such-command"])


def test_command_not_executable(refused, tmp_path):
    (tmp_path / "data").write_text("data")
    assert "Permission denied" in refused(126, command=[str(tmp_path / "data")])
    (tmp_path / "data").chmod(0o755)
    assert "begin a script with `#!/bin/sh`" in refused(126, command=[str(tmp_path / "data")])


def test_no_nft(site, refused):
    nft = find_program("nft")
    site.node.run(["mount", "--bind", "/dev/null", nft], as_root=True, check=True)
    try:
        assert "`nft`" in refused(72)
    finally:
        site.node.run(["umount", nft], as_root=True, check=True)


def test_a_kernel_without_tproxy(site, refused, tmp_path):
    fake = tmp_path / "nft"
    fake.write_text("#!/bin/sh\necho 'Error: Could not process rule: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    nft = find_program("nft")
    site.node.run(["mount", "--bind", str(fake), nft], as_root=True, check=True)
    try:
        line = refused(82)
    finally:
        site.node.run(["umount", nft], as_root=True, check=True)
    assert "Could not process rule" in line
    assert "modprobe nft_tproxy" in line


def test_user_namespaces_switched_off(site, refused):
    old = _user_namespaces_limit(site, None)
    _user_namespaces_limit(site, "0")
    try:
        assert "sysctl user.max_user_namespaces=" in refused(71)
    finally:
        _user_namespaces_limit(site, old)


def _user_namespaces_limit(site, value):
    """Reads the sysctl that holds for the node's ordinary user, or sets it, as only that namespace's root may."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.setns(site.node._user)
            with open("/proc/sys/user/max_user_namespaces", "w" if value else "r") as file:
                os.write(tell, str(file.write(value) if value else file.read().strip()).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(pid, 0)
    with os.fdopen(told) as pipe:
        said = pipe.read()
    assert said
    return said


def test_a_run_folder_that_we_may_not_write_to(refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    line = refused(74, "--run-dir", str(tmp_path / "closed" / "run"))
    assert "let this account write there" in line


def test_full_disk(site, gateway, refused, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    site.node.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=777", "none", str(disk)], as_root=True, check=True)
    try:
        site.node.run(["sh", "-c", f"mkdir {disk}/run; head -c 100000 /dev/zero > {disk}/full"])
        line = refused(74, "--run-dir", f"{disk}/run")
        assert "No space left" in line
    finally:
        site.node.run(["umount", str(disk)], as_root=True, check=True)


def test_every_error_has_an_exit_code_of_its_own():
    codes = [kind.exit_code for kind in VpnError.__subclasses__()]
    assert len(codes) == len(set(codes))
