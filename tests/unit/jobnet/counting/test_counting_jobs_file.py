"""jobs.json, where there is room for it and where there is none."""

import json
import logging
import resource
from contextlib import contextmanager

from htcondor_vpn.jobnet.counting.jobs_file import JobsFile


@contextmanager
def room_for(count):
    """No file of this process gets longer than `count` bytes: to write more fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_can_be_read_and_is_its_owners_alone(tmp_path):
    JobsFile(tmp_path).write({"p1": []}, ['{"a": 1}', '{"a": 2}'])
    found = JobsFile(tmp_path).read()
    assert (found["version"], found["policies"], found["jobs"]) == (1, {"p1": []}, [{"a": 1}, {"a": 2}])
    assert (tmp_path / "jobs.json").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, caplog):
    file = JobsFile(tmp_path)
    file.write({}, ["1"])
    caplog.set_level(logging.CRITICAL + 1)  # a log that is a file would meet the limit as well
    with room_for(4096):
        file.write({}, [json.dumps("x" * 10_000)])
    assert file.read()["jobs"] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.json"]
