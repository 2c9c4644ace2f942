"""A flight recorder of whatever a job does: it loses no byte, is bounded, and goes on after a restart."""

import json
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.counting import recorder as module
from htcondor_vpn.jobnet.counting.answers import Named, Undelivered
from htcondor_vpn.jobnet.counting.recorder import Recorder
from htcondor_vpn.jobnet.counting.table import Flow, Moved, Peer

NAMES = ("campus",)


def flow(host, number=0, refused_by=0):
    return Flow(Peer(ip_address(f"192.0.2.{host}"), "tcp", 443), number, refused_by)


flows = st.builds(flow, st.integers(1, 12), st.integers(0, 1))
#: Each step: flows with what they moved more, and whether the silent ones are taken out of the kernel.
steps = st.lists(st.tuples(st.dictionaries(flows, st.integers(1, 1000)), st.booleans()), max_size=12)


@given(steps, st.integers(1, 5))
def test_no_byte_is_lost_whatever_is_taken_out(taken, most):
    bound, module.MOST_DESTINATIONS = module.MOST_DESTINATIONS, most
    try:
        recorder, kernel, sent = Recorder(NAMES), {}, 0
        for now, (moved, take_out) in enumerate(taken):
            for each, more in moved.items():
                kernel[each] = kernel.get(each, Moved()).plus(Moved(more, 2 * more, 1, 1))
                sent += more
            silent = recorder.see(kernel, float(now))
            if take_out:
                recorder.settle(silent)
                for each in silent:
                    del kernel[each]
        told = recorder.message(most)
        assert len(told["destinations"]) <= most
        listed = sum(each["bytes_out"] for each in told["destinations"])
        assert listed + told["others"]["bytes_out"] == sent
        assert sum(each["bytes_in"] for each in told["destinations"]) + told["others"]["bytes_in"] == 2 * sent
    finally:
        module.MOST_DESTINATIONS = bound


@given(steps)
def test_another_broker_goes_on(taken):
    recorder, kernel, sent = Recorder(NAMES), {}, {}
    for now, (moved, restart) in enumerate(taken):
        for each, more in moved.items():
            kernel[each] = kernel.get(each, Moved()).plus(Moved(more, 0, 1, 0))
            sent[each] = sent.get(each, 0) + more
        recorder.see(kernel, float(now))
        if restart:
            recorder = Recorder.of(json.loads(json.dumps(recorder.state())), NAMES)
    found = {(each["address"], each["class_name"]): each["bytes_out"] for each in recorder.message()["destinations"]}
    assert found == {(str(each.peer.address), ("(other)", *NAMES)[each.number]): n for each, n in sent.items()}


def test_what_was_settled_is_not_lost_by_a_restart():
    recorder = Recorder(NAMES)
    recorder.see({flow(1): Moved(100, 0, 1, 0)}, 1.0)
    recorder.settle(recorder.see({flow(1): Moved(100, 0, 1, 0)}, 2.0))
    recorder.see({flow(1): Moved(10, 0, 1, 0)}, 3.0)
    recorder = Recorder.of(recorder.state(), NAMES)
    recorder.see({flow(1): Moved(15, 0, 2, 0)}, 4.0)
    (told,) = recorder.message()["destinations"]
    assert (told["bytes_out"], told["first_seen"], told["last_seen"]) == (115, 1.0, 4.0)
    assert not recorder.message()["complete"]


def test_what_the_kernel_did_not_tell_apart_is_among_the_others_whoever_reads_it():
    recorder = Recorder(NAMES)
    recorder.see({flow(1): Moved(100, 0, 1, 0)}, 1.0)
    recorder.unlisted = Moved(50, 60, 1, 1)
    for later in (recorder, Recorder.of(json.loads(json.dumps(recorder.state())), NAMES)):
        assert (later.message()["others"]["bytes_out"], later.message()["others"]["bytes_in"]) == (50, 60)
        later.kernel_forgot()
        later.unlisted = Moved(1, 2, 1, 1)  # since then
        assert (later.message()["others"]["bytes_out"], later.message()["others"]["bytes_in"]) == (51, 62)


def test_refusals_say_by_what_and_how_often():
    recorder = Recorder(())
    recorder.heard(Named("storage.example.org", (ip_address("192.0.2.1"),)), 0.5)
    for packets in (1, 3):
        recorder.see({flow(1, refused_by=6): Moved(sent_packets=packets)}, float(packets))
    recorder.heard(Undelivered(Peer(ip_address("192.0.2.2"), "udp", 53), "the far side has no such port"), 4.0)
    forbidden, undelivered = recorder.message()["refused"]
    assert forbidden["attempts"] == 3
    assert forbidden["name"] == "storage.example.org"
    assert forbidden["reason"] == "the policy of this slot forbids it"
    assert (undelivered["reason"], undelivered["attempts"]) == ("the far side has no such port", 1)
    again = Recorder.of(recorder.state(), ())
    again.see({flow(1, refused_by=6): Moved(sent_packets=3)}, 5.0)
    assert again.message()["refused"] == recorder.message()["refused"]
    again.see({flow(1, refused_by=6): Moved(sent_packets=4)}, 6.0)
    assert again.message()["refused"][0]["attempts"] == 4


def test_a_scan_fills_no_memory():
    recorder = Recorder(())
    for number in range(3000):
        peer = Peer(ip_address(0x0A000000 + number), "tcp", 22)
        recorder.see({Flow(peer, 0): Moved(1, 0, 1, 0), Flow(peer, 0, 6): Moved(sent_packets=1)}, 1.0)
        recorder.heard(Named(f"host{number}", (peer.address,)), 1.0)
        recorder.settle({Flow(peer, 0): Moved(1, 0, 1, 0), Flow(peer, 0, 6): Moved(sent_packets=1)})
    told = recorder.message()
    assert len(told["destinations"]) == module.MOST_DESTINATIONS
    assert told["others"]["destinations"] == 3000 - module.MOST_DESTINATIONS
    assert len(told["refused"]) == module.MOST_REFUSALS
    assert told["others"]["refused"] == 3000 - module.MOST_REFUSALS
    assert len(json.dumps(told)) < 400_000
    assert len(recorder._names) <= module.MOST_NAMES
    assert len(recorder._last) == 0
