"""What our job networks rely on in HTCondor's starter, in both versions: wrapper, hooks, and how a hold comes about."""

import pytest

from htcondor_vpn.testbed.condor_folder import Master, wait_until
from htcondor_vpn.testbed.pool import EXECUTING, WAIT_SECONDS

pytestmark = pytest.mark.pool

#: Each writes down what it was called with; the files lie beside the scripts, whose folder stands in argv[0].
SCRIPTS = {
    "wrapper": """#!/bin/sh
here=$(dirname "$0")
env > "$here/wrapper.env"
"$@"
code=$?
"$_CONDOR_CHIRP" set_job_attr_delayed ChirpTestSum 4711
exit $code
""",
    "prepare": """#!/bin/sh
here=$(dirname "$0")
cat > "$here/prepare.ad"
if grep -q '^Bad = true' "$here/prepare.ad"; then
  echo 'HookStatusCode = 42'
  echo 'HookStatusMessage = "it asks for too much"'
else
  echo 'FromPrepare = "seen"'
fi
""",
    "update": """#!/bin/sh
here=$(dirname "$0")
cat > "$here/update.new" && mv "$here/update.new" "$here/update.ad"
""",
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """The folder of the scripts and of what they write."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in SCRIPTS.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def pilot(site, pool, notes, tmp_path_factory):
    config = pool.pilot(tmp_path_factory.mktemp("pilot"), name="hooked")
    config.add(
        f"USER_JOB_WRAPPER = {notes}/wrapper",
        "STARTER_JOB_HOOK_KEYWORD = TESTED",
        f"TESTED_HOOK_PREPARE_JOB_BEFORE_TRANSFER = {notes}/prepare",
        f"TESTED_HOOK_UPDATE_JOB_INFO = {notes}/update",
        f'STARTER_JOB_ENVIRONMENT = "_CONDOR_CHIRP={config.command("condor_chirp")[-1]}"',
    )
    with Master(site.dmz, config):
        pool.wait_for_startd("hooked")
        yield config


def test_the_wrapper_keeps_the_exit_code_and_chirps_at_the_end(pool, pilot, notes):
    cluster = pool.submit({"executable": "/bin/sh", "arguments": "\"-c 'exit 9'\"", "+Bad": "false"})
    ad = pool.wait_for_history(cluster)
    assert (ad["ExitCode"], ad.get("ChirpTestSum")) == (9, 4711)
    variables = dict(line.split("=", 1) for line in (notes / "wrapper.env").read_text().splitlines() if "=" in line)
    assert {"_CONDOR_SLOT", "_CONDOR_CHIRP_CONFIG", "_CONDOR_SCRATCH_DIR", "_CONDOR_JOB_AD"} <= variables.keys()
    assert variables["_CONDOR_SLOT"].startswith("slot1_")


def test_the_prepare_hook_gets_the_jobs_ad_and_what_it_says_is_not_in_the_history(pool, pilot, notes):
    cluster = pool.submit({"executable": "/bin/true", "+Mine": "11"})
    ad = pool.wait_for_history(cluster)
    assert "Mine = 11\n" in (notes / "prepare.ad").read_text()
    assert "FromPrepare" not in ad
    pool.remove(cluster)  # which has left the queue by itself


def test_the_prepare_hook_holds_a_job_with_its_code_and_message(pool, pilot):
    cluster = pool.submit({"executable": "/bin/true", "+Bad": "true"})
    ad = pool.wait_for_hold(cluster)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (19, 42)
    assert "it asks for too much" in ad["HoldReason"]
    pool.remove(cluster)


def test_the_update_hook_is_called_while_the_job_runs(pool, pilot, notes):
    (notes / "update.ad").unlink(missing_ok=True)
    cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000", "+Mine": "12"})
    pool.wait_for_event(cluster, EXECUTING)

    def called():
        text = (notes / "update.ad").read_text() if (notes / "update.ad").exists() else ""
        return text if "Mine = 12\n" in text and "JobPid = " in text else None

    assert wait_until("a call of the update hook with the job's process", WAIT_SECONDS, called)
    pool.remove(cluster)
    pool.wait_for_history(cluster)
