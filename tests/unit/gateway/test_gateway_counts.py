"""What a gateway's processes count and tell: flows, their records, and the sums of pilots."""

import json

from htcondor_vpn.gateway.operation.tally import Tally
from htcondor_vpn.gateway.operation.worker import batches
from htcondor_vpn.gateway.serving.flows import Flows


def test_sums_tell_what_is_new():
    flows = Flows()
    one, other = flows.begin("alice", "h:1"), flows.begin("alice", "h:2")
    one.traffic.bytes_to_plain, other.traffic.bytes_from_plain = 5, 7
    assert flows.sums() == [("alice", 2, 0, 5, 7)]
    one.traffic.bytes_to_plain += 1
    flows.end(one, "closed")
    assert flows.sums() == [("alice", 1, 1, 1, 0)]
    flows.end(other, "reset")
    assert flows.sums() == [("alice", 0, 1, 0, 0)]
    assert flows.sums() == []


def test_a_flow_is_recorded_at_its_end_and_when_it_has_moved():
    flows = Flows()
    flow = flows.begin("alice", "[2001:db8::1]:53/udp")
    flow.via = "2001:db8::1"
    (record,) = flows.progress()
    assert (record.destination, record.port, record.protocol, record.outcome) == ("2001:db8::1", 53, "udp", "")
    assert flows.progress() == []
    flow.traffic.bytes_to_plain = 9
    (record,) = flows.progress()
    assert (record.bytes_up, record.number) == (9, 1)
    flows.end(flow, "closed")
    assert [record.outcome for record in flows.ended()] == ["closed"]
    assert flows.ended() == flows.progress() == []


def test_what_waits_to_be_told_is_bounded(monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.serving.flows._MAX_ENDED", 3)
    flows = Flows()
    for _ in range(5):
        flows.end(flows.begin("alice", "h:1"), "closed")
    assert [record.number for record in flows.ended()] == [3, 4, 5]
    assert flows.forgotten == 2


def test_a_tally_is_over_all_processes():
    tally = Tally()
    tally.add(1, [("alice", 2, 0, 10, 20)])
    tally.add(2, [("alice", 1, 3, 1, 2), ("bob", 0, 1, 0, 0)])
    tally.tick()
    alice = tally.pilots["alice"].as_json()
    assert (alice["flows"], alice["flows_ended"], alice["bytes_up"], alice["bytes_down"]) == (3, 3, 11, 22)
    assert alice["up_mbps"] >= 0
    assert tally.total.as_json()["flows_ended"] == 4
    tally.gone(1)
    assert tally.pilots["alice"].flows == 1


def test_pilots_without_flows_are_forgotten(monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.operation.tally._KEPT_SECONDS", 0)
    tally = Tally()
    tally.add(1, [("alice", 0, 1, 1, 1), ("bob", 1, 0, 1, 1)])
    tally.tick()
    assert set(tally.pilots) == {"bob"}


def test_batches_fit():
    items = [["x" * 100, number] for number in range(50)]
    lists = list(batches(items, 1000))
    assert [item for batch in lists for item in batch] == items
    assert all(len(json.dumps(batch)) <= 1000 for batch in lists)
    assert list(batches([], 1000)) == []
    assert list(batches(["y" * 2000, "z"], 1000)) == [["y" * 2000], ["z"]]
