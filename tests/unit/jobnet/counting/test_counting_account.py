"""An account of any samples: its sums agree, its rates are those of the samples, and its attributes fit a starter."""

import json

from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.accounting import attributes, class_word
from htcondor_vpn.jobnet.counting.account import OTHER, Account
from htcondor_vpn.jobnet.counting.table import Moved
from htcondor_vpn.jobnet.wiring import Totals

NAMES = ("campus", "storage", "off-campus")

counts = st.integers(0, 2**50)
moves = st.builds(Moved, counts, counts, counts, counts, st.integers(0, 10**6))
#: For each sample: how long after the one before, and what each class has moved meanwhile.
samples = st.lists(st.tuples(st.floats(0.001, 100), st.lists(moves, min_size=4, max_size=4)), min_size=1, max_size=8)


def played(taken):
    """An account after `samples`, what they sum up to, and the rates (Mbit/s, received) between them."""
    account = Account(7, class_names=NAMES, began=1000.0)
    now, sums, rates = 1000.0, [Moved()] * 4, []
    for seconds, more in taken:
        now += seconds
        sums = [mine.plus(theirs) for mine, theirs in zip(sums, more)]
        whole = Moved()
        for each in sums:
            whole = whole.plus(each)
        account.sample(Totals(*(whole[i] for i in (1, 0, 3, 2))), dict(enumerate(sums)), now)
        rates.append(sum(each.received_bytes for each in more) * 8e-6 / seconds)
    return account, sums, rates


@given(samples)
def test_classes_add_up_to_the_job(taken):
    account, sums, _ = played(taken)
    told = attributes(account)
    for way in ("In", "Out"):
        words = map(class_word, (OTHER, *NAMES))
        assert sum(told[f"ChirpNetwork{word}Bytes{way}"] for word in words) == told[f"ChirpNetworkBytes{way}"]
    assert told["ChirpNetworkConnections"] == sum(each.connections for each in sums)
    assert told["NetworkIncomingInternal"] == sums[1].received_bytes
    assert told["NetworkIncomingInternal"] + told["NetworkIncomingExternal"] == told["ChirpNetworkBytesIn"]
    assert told["NetworkOutgoingInternal"] + told["NetworkOutgoingExternal"] == told["ChirpNetworkBytesOut"]


@given(samples, st.floats(0.5, 1.1))
def test_classes_have_their_part_of_the_frames(taken, factor):
    """Frames have more headers than the segments that were counted, and what a queue dropped is not in them."""
    account, sums, _ = played(taken)
    account.totals = Totals(*(int(count * factor) for count in account.totals))
    told = account.by_class()
    assert sum(moved.received_bytes for moved in told.values()) == account.totals.received_bytes
    assert sum(moved.sent_bytes for moved in told.values()) == account.totals.sent_bytes
    assert all(moved.received_bytes >= 0 for moved in told.values())
    assert abs(told["storage"].received_bytes - sums[2].received_bytes * factor) <= 3 + sums[2].received_bytes * 1e-9


@given(samples)
def test_peak_is_not_below_the_mean_nor_above_the_fastest_sample(taken):
    account, _, rates = played(taken)
    account.finish("ended")
    assert account.peak_in_mbps <= max(rates) * (1 + 1e-6) + 1e-9
    assert account.mean_in_mbps <= max(rates) * (1 + 1e-6) + 1e-9
    if all(seconds >= 1.01 for seconds, _ in taken):
        assert account.peak_in_mbps >= account.mean_in_mbps * (1 - 1e-6)


@given(samples)
def test_account_survives_being_written(taken):
    account, _, _ = played(taken)
    assert Account.of(json.loads(json.dumps(account.message()))) == account


def test_without_classes_the_link_has_it_all():
    account = Account(0)
    account.sample(Totals(5000, 700, 4, 3), {0: Moved(connections=2)}, account.began + 1)
    assert account.by_class() == {OTHER: Moved(700, 5000, 3, 4, 2)}


def test_a_starter_takes_the_attributes_of_any_policy():
    names = tuple(f"class-{number}" for number in range(60))
    account = Account(0, class_names=names, resent_segments=1)
    assert len(attributes(account)) <= 100
    assert len(attributes(Account(0, class_names=NAMES))) == 15 + 3 * 4


def test_classes_whose_names_make_the_same_word_are_told_together():
    account = Account(0, class_names=("off-campus", "off.campus", "other"))
    account.sample(Totals(10, 0, 4, 0), {number: Moved(0, number + 1, 0, 1) for number in range(4)}, account.began + 1)
    told = attributes(account)
    assert told["ChirpNetworkOffCampusBytesIn"] == 2 + 3
    assert told["ChirpNetworkOtherBytesIn"] == 1 + 4


def test_classes_beyond_the_bound_are_in_the_other_one():
    names = tuple(f"class-{number}" for number in range(60))
    account = Account(0, class_names=names)
    account.sample(Totals(61, 0, 61, 0), {number: Moved(0, 1, 0, 1) for number in range(61)}, account.began + 1)
    told = dict(attributes(account))
    del told["ChirpNetworkBytesIn"]
    assert sum(value for name, value in told.items() if name.endswith("BytesIn")) == 61
