"""What an operator is told of a gateway's restart, by a control socket as the gateway has it."""

import threading
from contextlib import contextmanager

import pytest

from htcondor_vpn.cli import gateway_operation
from htcondor_vpn.cli.main import main
from htcondor_vpn.errors import GatewayNotRunning
from htcondor_vpn.gateway.operation.control import ControlSocket, reply
from htcondor_vpn.linux.loop import Loop


@contextmanager
def gateway(folder, after):
    """One whose control socket ends the connection when a restart is asked for, and says what `after` has from then."""
    loop, over, known = Loop(), threading.Event(), {"pid": 100, "generation": 1, "version": "1", "workers": []}

    def answer(request, channel):
        if request["do"] == "restart":
            known.update(after)
            raise ValueError("the program ends")
        reply(channel, known)

    control = ControlSocket(folder, loop, answer)

    def serve():
        while not over.is_set():
            loop.run_until(over.is_set, 0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        control.close()
        loop.run_until(lambda: not control._channels, 10)  # who has asked is gone


def test_a_new_program_serves(tmp_path, capsys):
    with gateway(tmp_path, {"generation": 2, "version": "2", "workers": [{"flows": 3}]}):
        assert main(["gateway", "restart", "--dir", str(tmp_path)]) == 0
    assert "version 2 serves; 3 flows go on" in capsys.readouterr().out


@pytest.mark.parametrize("after", [{"pid": 101}, {}], ids=["another process", "nothing new"])
def test_no_new_program_took_over(tmp_path, capsys, monkeypatch, after):
    """Be it that a service manager has started another one, which knows nothing of the former's flows."""
    monkeypatch.setattr(gateway_operation, "_RESTART_SECONDS", 1.0)
    with gateway(tmp_path, after):
        assert main(["gateway", "restart", "--dir", str(tmp_path)]) == GatewayNotRunning.exit_code
    assert "did not take over" in capsys.readouterr().err
