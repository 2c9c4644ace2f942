"""Whom a broker remembers as not executable: by name, once, and not without a bound."""

from htcondor_vpn.jobnet.failed_jobs import FailedJobs


def test_a_job_that_failed_is_known_once():
    jobs = FailedJobs()
    jobs.remember("ap#1.0#1", "no such\nfile")
    assert jobs.forget("ap#1.0#1") == "no such file"
    assert jobs.forget("ap#1.0#1") is None, "released, it gets another chance"


def test_without_a_name_nobody_is_known_again():
    jobs = FailedJobs()
    jobs.remember("", "no such file")
    assert jobs.forget("") is None


def test_the_latest_are_remembered():
    jobs = FailedJobs()
    for number in range(3000):
        jobs.remember(f"ap#{number}.0#1", "no such file")
    assert jobs.forget("ap#0.0#1") is None
    assert jobs.forget("ap#2999.0#1") == "no such file"
