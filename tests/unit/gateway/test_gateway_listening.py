import errno
import os
import resource
import socket

import pytest

from htcondor_vpn.errors import ListenError
from htcondor_vpn.gateway.operation import listening
from htcondor_vpn.gateway.operation.listening import listen, name_of, raise_descriptor_limit


def test_both_versions_on_one_port(ipv6):
    (first,) = listen([("0.0.0.0", 0)])
    with first:
        port = first.getsockname()[1]
        (second,) = listen([("::", port)])
        with second:
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, port), timeout=5).close()


def test_a_host_without_ipv6(monkeypatch):
    real = listening._listen

    def without(host, port):
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(host, port)

    monkeypatch.setattr(listening, "_listen", without)
    (only,) = listen([("::", 0), ("0.0.0.0", 0)])
    only.close()
    with pytest.raises(ListenError, match="nowhere to listen"):
        listen([("::", 0)])
    with pytest.raises(ListenError, match=r"cannot listen on \[2001:db8::1\]:8443"):
        listen([("0.0.0.0", 0), ("2001:db8::1", 8443)])


def test_a_failure_closes_the_others():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoints = [("127.0.0.1", 0), taken.getsockname()]
        with pytest.raises(ListenError, match="already in use"):
            listen(endpoints)  # a socket left open would be a warning, and warnings are errors


def test_names():
    assert name_of(("::1", 80, 0, 0)) == "[::1]:80"
    assert name_of(("192.0.2.1", 80)) == "192.0.2.1:80"


@pytest.mark.parametrize(("hard", "room"), [(1128, 500), (100, 1), (1 << 20, 8000), (resource.RLIM_INFINITY, 8000)])
def test_room_for_connections(monkeypatch, hard, room):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, hard))
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert raise_descriptor_limit(8000) == room
    assert asked == [(hard, hard)]


def test_connections_fit_into_memory(monkeypatch, caplog):
    monkeypatch.setattr(listening, "_memory_bytes", lambda: 4 * 100 * listening.CONNECTION_BYTES)
    assert listening.within_memory(150) == 150
    assert listening.within_memory(8000) == 200
    assert "allow 200 connections, not 8000" in caplog.text


def test_the_memory_is_known():
    assert 2**26 < listening._memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
