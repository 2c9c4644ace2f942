"""The operator's socket of a gateway whose folder another gateway uses too: one that comes while the first one ends."""

import os
import threading
from contextlib import closing

from htcondor_vpn.gateway.operation import control as module
from htcondor_vpn.gateway.operation.control import FILE, Connection, ControlSocket, reply
from htcondor_vpn.linux.loop import Loop


def answers(control, loop, folder):
    """Whether who asks in the folder is answered by this one."""
    said = []
    asking = threading.Thread(target=lambda: said.append(_asked(folder)))
    asking.start()
    came = []

    def has_gone():
        came.extend(control._channels)
        return bool(came) and not control._channels

    assert loop.run_until(has_gone, 60)
    asking.join()
    return said == [{"name": id(control)}]


def _asked(folder):
    with Connection(folder) as connection:
        return connection.ask({"do": "status"})


def listening(folder, loop, former=None):
    control = ControlSocket(folder, loop, lambda _, channel: reply(channel, {"name": id(control)}), former)
    return control


def test_one_that_ends_leaves_the_socket_of_one_that_has_just_come(tmp_path, monkeypatch):
    first, identity = listening(tmp_path, Loop()), module._identity
    loop, came = Loop(), []
    coming = threading.Thread(target=lambda: came.append(listening(tmp_path, loop)))

    def looked_at(path):
        found = identity(path)
        if path.name == FILE and not coming.ident:
            coming.start()
            coming.join(0.5)  # or it waits until the first one has done what it does by what it has found
        return found

    monkeypatch.setattr(module, "_identity", looked_at)
    first.close()
    coming.join()
    with closing(came[0]) as second:
        assert answers(second, loop, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_new_program_has_one_though_another_gateway_had_taken_its_place(tmp_path):
    former = listening(tmp_path, Loop())
    listening(tmp_path, Loop()).close()
    loop = Loop()
    with closing(listening(tmp_path, loop, os.dup(former.fileno()))) as new:
        assert answers(new, loop, tmp_path)
    former.close()


def test_a_new_program_has_the_former_ones(tmp_path):
    former, loop = listening(tmp_path, Loop()), Loop()
    before = (tmp_path / FILE).stat().st_ino
    with closing(listening(tmp_path, loop, os.dup(former.fileno()))) as new:
        assert answers(new, loop, tmp_path)
        assert (tmp_path / FILE).stat().st_ino == before
    former._listener.close()
