"""Whose what comes by a link is: the job's whose address it has, where many jobs come by one."""

from ipaddress import ip_address

import pytest

from htcondor_vpn.addresses import (
    FIRST_INDEX,
    FIRST_TUNNELLED,
    MAX_JOBS,
    PILOT_V4,
    PILOT_V6,
    POINT_LINK_INDEX,
    job_link,
    link_of,
)
from htcondor_vpn.tunnel.catching.shared_by import by_link


@pytest.mark.parametrize("number", [0, 1, FIRST_TUNNELLED, MAX_JOBS - 1])
def test_a_job_is_one_owner_by_either_of_its_addresses(number):
    index, link = FIRST_INDEX + 2 * number, job_link(number)
    assert {link_of(str(address)) for address in (link.job_v4, link.job_v6)} == {index}
    assert {by_link(str(address), index) for address in (link.job_v4, link.job_v6)} == {index}
    assert {by_link(str(address), POINT_LINK_INDEX) for address in (link.job_v4, link.job_v6)} == {index}


@pytest.mark.parametrize("address", [PILOT_V4, PILOT_V6, ip_address("203.0.113.1"), ip_address("2001:db8::1")])
def test_what_is_no_jobs_is_the_pilots_own(address):
    assert link_of(str(address)) == by_link(str(address), 1) == 1
