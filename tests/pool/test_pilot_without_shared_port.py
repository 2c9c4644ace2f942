"""A pilot whose own configuration has no shared port, as GlideinWMS' has none, in the tunnel."""

from htcondor_vpn.testbed.condor_folder import Master

NAME = "portless"


def test_its_daemons_do_not_take_the_collector_for_one_of_their_own(site, pool, gateway, tmp_path):
    config = pool.pilot(tmp_path / "pilot", name=NAME)
    config.use_vpn()
    # HTCondor's port by default is that of the collector; nobody waits for a second update here.
    own = "USE_SHARED_PORT = False", "SHARED_PORT_PORT = 9618", "UPDATE_INTERVAL = 300", "MASTER_UPDATE_INTERVAL = 300"
    config.add(*own, name="10-own.conf")
    with Master(site.node, config, launcher=gateway.run_argv([])):
        pool.wait_for_startd(NAME, constraint='VpnState == "up"')
    for name in ("MasterLog", "StartLog"):
        assert "rejected our session" not in (config.folder / "log" / name).read_text()
