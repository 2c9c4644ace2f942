"""Sessions of gateways for packets: what is counted and recorded of them."""

import json

import pytest

from htcondor_vpn.gateway.ocserv_users import OcservUsers
from htcondor_vpn.packet_gateway.ocserv_sessions import parse_users
from htcondor_vpn.packet_gateway.sessions import Reading, Sessions


def reading(key, up, down, pilot="alice", live=True):
    return Reading(key, pilot, "192.0.2.7:4000", "198.18.128.1", up, down, live)


def test_bytes_are_those_of_each_session():
    sessions = Sessions("wireguard")
    sessions.told([reading("k", 10, 20, live=False)], {"alice"})
    assert (len(sessions), sessions.flows.sums()) == (0, [])
    sessions.told([reading("k", 110, 220)], {"alice"})
    sessions.told([reading("k", 150, 300)], {"alice"})
    assert sessions.flows.sums() == [("alice", 1, 0, 140, 280)]
    sessions.told([reading("k", 5, 6)], {"alice"})  # the program was started anew
    assert sessions.flows.sums() == [("alice", 1, 0, 5, 6)]
    sessions.told([reading("k", 5, 6, live=False)], {"alice"})
    (record,) = sessions.flows.ended()
    assert (record.bytes_up, record.bytes_down, record.outcome) == (145, 286, "ended")
    assert (record.destination, record.port, record.protocol) == ("192.0.2.7", 4000, "wireguard")
    assert record.via == "198.18.128.1"


def test_why_they_end():
    sessions = Sessions("ocserv")
    sessions.told([reading(1, 0, 0), reading(2, 0, 0, "bob"), reading(3, 0, 0)], {"alice", "bob"})
    assert 2 in sessions
    sessions.told([reading(3, 0, 0)], {"alice"})
    sessions.end_all("gateway_ended")
    assert {(record.pilot, record.outcome) for record in sessions.flows.ended()} == {
        ("alice", "ended"), ("bob", "credential_revoked"), ("alice", "gateway_ended"),
    }  # fmt: skip
    assert len(sessions) == 0


def test_one_that_is_made_anew_under_the_same_key_begins_at_nothing():
    sessions = Sessions("wireguard")
    sessions.told([reading("k", 100, 100)], {"alice"})
    sessions.told([], set())
    sessions.told([reading("k", 150, 150)], {"alice"})
    first, second = sessions.flows.ended()[0], sessions.flows.progress()[0]
    assert (first.bytes_up, second.bytes_up) == (100, 150)


USER = {
    "ID": 77, "Username": "alice", "State": "connected", "Device": "htvj-oc0", "Remote IP": "10.1.0.2",
    "IPv4": "198.18.64.9", "RX": "12", "TX": "34", "Connected at": "2026-11-25 22:00",
}  # fmt: skip


def test_the_words_of_occtl():
    (found,) = parse_users(json.dumps([USER, {**USER, "State": "authenticating"}, {**USER, "Device": ""}]))
    assert found[1:] == ("alice", "10.1.0.2:0", "198.18.64.9", 12, 34, True)
    assert parse_users("[]") == []


@pytest.mark.parametrize("text", ["", "{}", "no JSON", "[1]", '[{"ID": 1}]'])
def test_other_words(text):
    with pytest.raises(ValueError, match=r"occtl|Expecting"):
        parse_users(text)


def test_who_may_log_in_to_ocserv(tmp_path):
    users = OcservUsers(tmp_path / "g")
    users.admit_all()
    (users.folder / "passwd").write_text("alice:*:hash\n")
    assert users.admitted.read_text() == "alice:*:hash\n"
    users.admit_nobody()
    assert users.admitted.read_text() == ""
    users.admit_all()
    assert users.admitted.read_text() == "alice:*:hash\n"
