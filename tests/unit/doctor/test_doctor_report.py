"""What follows from findings, and what is said of it."""

import json

import pytest

from htcondor_vpn.cli.main import main
from htcondor_vpn.doctor import examination, namespaces, report
from htcondor_vpn.doctor.examination import Asked, examine
from htcondor_vpn.doctor.finding import bad, good, limited, unknown
from htcondor_vpn.doctor.verdict import ENGINES, FEATURES, judge

BASE = [good(name, "fine") for name in ENGINES["proxy"]]


def changed(*findings):
    names = {finding.name for finding in findings}
    return [finding for finding in BASE if finding.name not in names] + list(findings)


def test_all_works_where_all_is_good():
    assert all(verdict.works for verdict in judge(ENGINES, BASE).values())


@pytest.mark.parametrize("name", ENGINES["proxy"])
def test_without_its_base_no_engine_works(name):
    verdicts = judge(ENGINES, changed(bad(name, "broken")))
    assert {verdict.lacks for verdict in verdicts.values()} == {(name,)}


def test_a_packet_vpn_takes_more():
    verdicts = judge(ENGINES, [*BASE, bad("tun devices", "none")])
    assert [name for name, verdict in verdicts.items() if not verdict.works] == ["wireguard", "openconnect"]


def test_one_gateway_of_several_is_enough():
    dead, alive = bad("gateway a:1, TCP", "dead"), good("gateway b:1, TCP", "alive")
    assert judge(ENGINES, [*BASE, dead, alive])["stream"].works
    assert judge(ENGINES, [*BASE, dead])["stream"].lacks == ("gateway",)


def test_what_is_limited_or_unknown_does_not_stop_an_engine():
    assert judge(ENGINES, changed(limited("kernel", "old"), unknown("user namespaces", "?")))["stream"].works


def test_what_is_limited_is_no_feature():
    verdicts = judge(FEATURES, [*BASE, limited("holding connects", "no NFQUEUE")])
    assert [verdict.works for verdict in verdicts.values()] == [False, True, True]


def test_the_mail_asks_for_what_is_missing_the_worst_first():
    findings = changed(limited("limits", "few", "raise them"), bad("user namespaces", "off", "sysctl x=1"))
    mail = report.Report(findings).mail()
    assert mail.startswith("Subject: ")
    assert mail.index("1. user namespaces: off.\n   Please sysctl x=1.") < mail.index("2. limits: few.")
    assert report.Report(BASE).mail() == ""


def test_every_need_is_a_finding_of_some_check(monkeypatch):
    found = {finding.name for finding in examine(Asked())}
    needs = {need for needs in (*ENGINES.values(), *FEATURES.values()) for need in needs if not need.endswith(" ")}
    assert needs <= found


def test_without_user_namespaces_what_takes_them_is_not_tried(monkeypatch):
    monkeypatch.setattr(namespaces, "user_namespaces", lambda: bad("user namespaces", "off", "allow them"))
    findings = {finding.name: finding for finding in examine(Asked())}
    for name in examination._INSIDE:
        assert "not tried" in findings[name].said
    mail = report.Report(list(findings.values())).mail()
    assert mail.count("allow them") == 1


@pytest.fixture
def findings(monkeypatch):
    found = list(BASE)
    monkeypatch.setattr("htcondor_vpn.cli.doctor.examine", lambda _: found)
    return found


def test_the_code_is_0_where_the_default_way_works(findings, capsys):
    assert main(["doctor"]) == 0
    assert "The default way, by the engine `stream`, works here." in capsys.readouterr().out


def test_the_code_is_its_own_where_it_does_not(findings, capsys):
    findings[:] = changed(bad("user namespaces", "off", "allow them"))
    assert main(["doctor", "--json"]) == 92
    told = json.loads(capsys.readouterr().out)
    assert told["default_works"] is False
    assert told["engines"]["stream"] == {"works": False, "lacks": ["user namespaces"]}
    assert {"name": "user namespaces", "outcome": "bad", "said": "off", "ask": "allow them"} in told["findings"]
    assert "allow them" in told["mail"]


@pytest.mark.parametrize("words", [["--gateway", "nonsense"], ["--udp", "host:0"], ["--echo", "1"]])
def test_wrong_words(words, capsys):
    assert main(["doctor", *words]) == 64
    assert capsys.readouterr().err.count("\n") == 1
