"""Which job wrapper of the site runs inside of ours."""

import pytest

from htcondor_vpn.jobnet.wrapper import surroundings


@pytest.mark.parametrize(
    ("of_settings", "of_glidein", "wanted"),
    [
        ("", None, []),
        ("/settings", None, ["/settings"]),
        ("", "/glidein", ["/glidein"]),
        ("/settings", "/the/job's", ["/settings"]),
    ],
)
def test_the_sites_own_wrapper(monkeypatch, of_settings, of_glidein, wanted):
    monkeypatch.setattr(surroundings, "environ", {} if of_glidein is None else {surroundings.CHAIN: of_glidein})
    assert surroundings.chained({"chain": of_settings}) == wanted
    assert surroundings.environ == {}, "the job does not see it"
