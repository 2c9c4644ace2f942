import hashlib
import math
import sqlite3
import time
from contextlib import closing

import pytest
from vouching import Vouching

from htcondor_vpn.errors import TokenNameError
from htcondor_vpn.gateway.trust.deny_list import DenyList
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Identity, Presented, written
from htcondor_vpn.gateway.trust.leases import Leases
from htcondor_vpn.gateway.trust.tokens import TokenStore


@pytest.fixture
def stores(tmp_path):
    with TokenStore(tmp_path) as tokens, DenyList(tmp_path) as deny_list, Leases(tmp_path) as leases:
        yield tokens, deny_list, leases


@pytest.fixture
def keeper(stores):
    tokens, deny_list, leases = stores
    return Gatekeeper([tokens, Vouching()], deny_list, leases)


def bearer(text):
    return Presented(bearer=text)


def test_each_kind_is_asked(keeper, stores):
    assert keeper.admit(bearer(stores[0].add("alice"))).name == "alice"
    assert keeper.admit(bearer("other.bob")).name == "other:bob"
    assert keeper.admit(Presented(certificate=b"carol")).name == "other:carol"


def test_what_no_kind_knows_is_refused(keeper):
    for presented in (Presented(), bearer("a.b.c"), bearer(""), bearer("other"), Presented(certificate=b"")):
        with pytest.raises(CredentialRefused):
            keeper.admit(presented)


def test_a_good_certificate_does_not_mend_a_bad_token(keeper):
    with pytest.raises(CredentialRefused):
        keeper.admit(Presented("not-a-token", b"carol"))


def test_a_name_and_a_mark_can_be_denied(keeper, stores):
    deny_list = stores[1]
    for denied in ("other:bob", "mark:bob"):
        identity = keeper.admit(bearer("other.bob"))
        assert keeper.ended(identity) is None
        deny_list.add(denied)
        deny_list.add(denied)
        with pytest.raises(CredentialRefused, match="denied"):
            keeper.admit(bearer("other.bob"))
        assert keeper.ended(identity) == "credential_revoked"
        assert keeper.admit(bearer("other.carol"))
        assert [each.name for each in deny_list.list()] == [denied]
        deny_list.remove(denied)
    assert keeper.admit(bearer("other.bob"))
    with pytest.raises(TokenNameError, match="is not denied"):
        deny_list.remove("other:bob")


@pytest.mark.parametrize("name", ["", "a b", "a\n", "ä", "x" * 300])
def test_what_can_name_nobody_is_not_denied(stores, name):
    with pytest.raises(TokenNameError):
        stores[1].add(name)


def test_a_denial_by_another_process_is_learnt(keeper, tmp_path):
    identity = keeper.admit(bearer("other.bob"))
    with DenyList(tmp_path) as other:
        other.add("other:bob")
    keeper.refresh()
    assert keeper.ended(identity) == "credential_revoked"


def test_a_renewed_credential_keeps_the_flows_of_the_old_one(keeper, monkeypatch):
    now = time.time()
    old = keeper.admit(bearer(f"other.bob.{now + 100}"))
    keeper.admit(bearer(f"other.bob.{now + 1000}"))
    monkeypatch.setattr(time, "time", lambda: now + 500)
    assert keeper.ended(old) is None
    with pytest.raises(CredentialRefused, match="expired"):
        keeper.admit(bearer(f"other.bob.{now + 100}"))
    monkeypatch.setattr(time, "time", lambda: now + 1001)
    assert keeper.ended(old) == "credential_expired"


def test_a_renewal_is_learnt_from_another_process(stores, tmp_path, monkeypatch):
    now = time.time()
    tokens, deny_list, leases = stores
    here = Gatekeeper([Vouching()], deny_list, leases)
    old = here.admit(bearer(f"other.bob.{now + 100}"))
    with Leases(tmp_path) as others:
        Gatekeeper([Vouching()], deny_list, others).admit(bearer(f"other.bob.{now + 1000}"))
    here.refresh()
    monkeypatch.setattr(time, "time", lambda: now + 500)
    assert here.ended(old) is None


def test_a_token_of_our_own_is_not_renewed_by_another_of_its_name(keeper, stores, monkeypatch):
    tokens = stores[0]
    first = keeper.admit(bearer(tokens.add("alice", 100)))
    tokens.revoke("alice")
    second = keeper.admit(bearer(tokens.add("alice", 50)))
    keeper.refresh()
    assert keeper.ended(first) == "credential_revoked"
    assert keeper.ended(second) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert keeper.ended(second) == "credential_expired"


def test_only_pilots_that_are_wanted(stores):
    keeper = Gatekeeper([stores[0], Vouching()], *stores[1:], pilots=["other:pilot*"])
    assert keeper.admit(bearer("other.pilot-7"))
    assert keeper.admit(bearer(stores[0].add("alice"))).name == "alice"
    with pytest.raises(CredentialRefused, match="none of the pilots"):
        keeper.admit(bearer("other.bob"))


def test_leases_are_written_seldom_and_pruned(stores, tmp_path):
    leases, now = stores[2], time.time()
    statements = []
    leases._database._connection.set_trace_callback(statements.append)

    def extend(name, seconds):
        leases.extend(Identity("other", name, hashlib.sha256(name.encode()).digest(), now + seconds))
        leases.refresh()

    extend("bob", 1000)
    extend("carol", -1)
    written = sum("INSERT" in each for each in statements)
    for seconds in range(1000, 1050):
        extend("bob", seconds)
    assert sum("INSERT" in each for each in statements) == written
    assert leases.until("bob") == now + 1049
    assert leases.until("nobody") == 0.0
    extend("dave", math.inf)
    extend("bob", 5000)
    with Leases(tmp_path) as others:
        others.refresh()
        assert (others.until("bob"), others.until("carol")) == (now + 5000, 0.0)
        assert others.until("dave") == math.inf


@pytest.mark.parametrize("obstacle", ["a full disk", "another's lock"])
def test_pilots_are_admitted_while_leases_cannot_be_written(keeper, stores, tmp_path, obstacle, caplog):
    leases, began = stores[2], time.monotonic()
    with closing(sqlite3.connect(tmp_path / "tokens.db", isolation_level=None)) as other:
        if obstacle == "a full disk":  # SQLite says the same of it
            other.execute("CREATE TABLE filler AS SELECT 1 AS one")
            (pages,) = leases._database._connection.execute("PRAGMA page_count").fetchone()
            leases._database._connection.execute(f"PRAGMA max_page_count = {pages}")
        else:
            other.execute("BEGIN IMMEDIATE")
        for number in range(100):  # more than there is room for on a page
            assert keeper.admit(bearer(f"other.{'x' * 100}{number}")).name.endswith(f"x{number}")
            if obstacle == "another's lock" and number == 2:
                break
        keeper.refresh()
        assert time.monotonic() - began < 5
        assert caplog.text.count("do not learn") == 1
        leases._database._connection.execute("PRAGMA max_page_count = 100000")
        if other.in_transaction:
            other.execute("COMMIT")
    keeper.refresh()
    with Leases(tmp_path) as others:
        others.refresh()
        assert others.until(f"other:{'x' * 100}2") == math.inf


@pytest.mark.parametrize("text", ["a b", "a\nb", "ä", "\x1b[0m", "\ud800", "x=\x00"])
def test_names_do_not_spoil_the_log(text):
    try:
        name = written(text)
    except CredentialRefused:
        return
    assert name.isprintable()
    assert " " not in name
    assert name.isascii()
