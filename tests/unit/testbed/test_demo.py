"""What the demonstration makes of numbers, and of sizes and rates that nobody can ask for."""

import json

import pytest

from htcondor_vpn.cli import main as cli
from htcondor_vpn.testbed.demo import _JOB, _counted, _rate
from htcondor_vpn.testbed.report import Report


def ad(received, packets):
    return {"ChirpNetworkBytesIn": received, "ChirpNetworkPacketsIn": packets}


@pytest.mark.parametrize(
    ("served", "received", "packets", "good"),
    [
        (40_000_000, 40_100_000, 700, True),
        (40_000_000, 39_999_999, 700, False),
        (40_000_000, 40_900_000, 700, False),
        (40_000_000, 0, 0, False),
        (0, 1_491, 12, True),  # DNS and HTTP's headers alone
        (0, 100_000, 12, False),
        (1_000_000, 1_474_832, 7_000, True),  # acknowledgements of 300 MB the other way
        (1_000_000, 1_474_832, 700, False),
        (1_000_000, None, None, False),
    ],
)
def test_bytes_against_what_the_server_counted(served, received, packets, good):
    report = Report("")
    _counted(report, ad(received, packets), "In", served)
    assert report.ok is good
    assert f"{served:,} counted by the server" in report.rows[0].wanted


@pytest.mark.parametrize(
    ("asked", "size", "got", "good"),
    [
        (200, 40_000_000, 196, True),
        (200, 40_000_000, 150, False),
        (200, 40_000_000, 230, False),
        (1000, 100_000_000, 850, True),  # of a link of 1000 Mbit/s
        (200, 1_000_000, 134, True),  # over too soon to tell
        (5, 1_000_000, 9, False),
    ],
)
def test_rate_against_what_was_asked_for(asked, size, got, good):
    report = Report("")
    _rate(report, "down", asked, size, got * 1e6 / 8)
    assert report.ok is good
    assert ("not judged" in report.rows[0].wanted) is (size * 8 < asked * 500_000)


def test_job_makes_its_payload_of_any_size():
    assert "truncate -s 0 payload" in _JOB.format(download="-", upload="-", upload_bytes=0)


@pytest.mark.parametrize(
    "words",
    [["--download-mb", "-1"], ["--upload-mb", "1000001"], ["--rate-mbps", "0"], ["--rate-mbps", "nan"],
     ["--rate-mbps", "1e9"], ["--rate-mbps", "fast"]],
)  # fmt: skip
def test_sizes_and_rates_that_make_no_sense(words, capsys):
    assert cli.main(["demo", *words]) == 64
    assert words[0] in capsys.readouterr().err


def test_rows_before_a_failure_are_written(monkeypatch, tmp_path):
    def fail(report, *_):
        report.add("first", True, 1)
        raise TimeoutError("job 1.0 in the history: not within 90 s")

    monkeypatch.setattr("htcondor_vpn.testbed.demo.demonstrate", fail)
    monkeypatch.setattr("htcondor_vpn.testbed.sandbox.inside", lambda: True)
    monkeypatch.setattr("htcondor_vpn.testbed.sandbox.open_output", lambda path: path.open("w"))
    assert cli.main(["demo", "--json", str(tmp_path / "rows.json")]) == 1
    told = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["name"], row["ok"]) for row in told["rows"]] == [
        ("first", True),
        ("the demonstration came to its end", False),
    ]
