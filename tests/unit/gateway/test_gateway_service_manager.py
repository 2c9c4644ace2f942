"""The gateway under systemd: what it says to it, and the unit that it prints."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from htcondor_vpn.gateway.service_manager import notify, unit
from htcondor_vpn.settings import Settings

TIMEOUT_SECONDS = 60
COMMAND = [sys.executable, "-m", "htcondor_vpn.cli.main", "gateway"]


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """What systemd listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + f"htcondor-vpn-test-{os.getpid()}")
        sock.settimeout(TIMEOUT_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@htcondor-vpn-test-{os.getpid()}")
        yield sock


def test_the_manager_is_told_how_it_goes(manager, tmp_path):
    argv = [*COMMAND, "--dir", str(tmp_path / "gateway"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert b"READY=1" in manager.recv(1000).splitlines()
            process.send_signal(signal.SIGUSR2)
            assert re.search(rb"^RELOADING=1\nMONOTONIC_USEC=[0-9]+$", manager.recv(1000))
            assert b"READY=1" in manager.recv(1000).splitlines()
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"
            assert process.wait(TIMEOUT_SECONDS) == 0
        finally:
            process.kill()


def test_no_manager_is_no_error(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify("READY=1")


def settings(folder="/var/lib/htcondor-vpn", **knobs):
    return Settings.load(overrides={"HTCONDOR_VPN_GATEWAY_DIR": folder, **knobs})


def test_the_unit_is_that_of_the_settings():
    text = unit(settings(), "gw", ["/opt/htcondor-vpn/bin/htcondor-vpn"], Path("/etc/gw %x.conf"))
    command = '/opt/htcondor-vpn/bin/htcondor-vpn gateway --dir /var/lib/htcondor-vpn --config "/etc/gw %%x.conf"'
    assert f"\nExecStart={command}\n" in text
    assert f"\nExecReload={command} restart\n" in text
    assert "\nStateDirectory=htcondor-vpn\n" in text
    assert "\nProtectHome=yes\n" in text
    assert "\nTimeoutStopSec=45\n" in text
    elsewhere = unit(settings("/home/gw/folder"), "gw", ["/opt/htcondor-vpn"], None)
    assert "\nReadWritePaths=/home/gw/folder\n" in elsewhere
    assert "\nProtectHome=read-only\n" in elsewhere
    assert "StateDirectory" not in elsewhere


def test_systemd_finds_the_unit_good_and_hard(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze (Debian: systemd)")
    file = tmp_path / "htcondor-vpn-gateway.service"
    file.write_text(unit(settings(), "htcondor-vpn", [sys.executable, "-m", "htcondor_vpn.cli.main"], None))

    def run(*words):
        return subprocess.run(
            [analyze, *words, str(file)], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )

    verified = run("verify", "--man=no")
    if "Failed to" in verified.stderr and "manager" in verified.stderr:
        pytest.skip(f"systemd-analyze cannot verify here: {verified.stderr.strip()}")
    assert (verified.returncode, file.name in verified.stderr) == (0, False), verified.stderr
    judged = run("security", "--offline=true", "--threshold=20")
    assert judged.returncode == 0, judged.stdout[-300:] + judged.stderr
