"""What a job is charged with, what the engine carried, and what the gateway's ledger has: the same bytes."""

import json
import sys
from pathlib import Path

import pytest
from resends import Resends, payload
from shell_pilot import QUICK, ShellPilot, wait_until

from htcondor_vpn.cli.main import main
from htcondor_vpn.gateway.operation.ledger import sums
from htcondor_vpn.jobnet.counting import ledger
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.headers import payload_bytes
from htcondor_vpn.testbed.services.oddities import REFUSED_PORT

pytest.importorskip("classad2", reason="a policy file needs HTCondor's Python bindings")
pytestmark = pytest.mark.linux

HERE = Path(__file__).parent
DOWN_BYTES, UP_BYTES = 20_000_000, 10_000_000
FAR, FORBIDDEN = plan.WORLD["iperf"], plan.WORLD["http"]
POLICY = f"""
[class lab]
destinations = {FAR.v4}, {FAR.v6}

[rule all]
deny = {FORBIDDEN.v4}, {FORBIDDEN.v6}
"""

#: Tries what is forbidden, refused, prohibited by the gateway, and allowed; prints each errno.
TRIES = f"""
import errno, socket
def connect(host, port):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    print(errno.errorcode.get(sock.connect_ex((host, port))))
connect("{FORBIDDEN.v4}", 80)
connect("{FORBIDDEN.v6}", 80)
connect("{FAR.v4}", {REFUSED_PORT})
connect("169.254.1.1", 80)
socket.create_connection((socket.gethostbyname("iperf.{plan.ZONE}"), 7000)).close()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.connect(("169.254.1.2", 99))
datagrams.send(b"x")
datagrams.settimeout(20)
try:
    datagrams.recv(1)
except OSError as error:
    print(errno.errorcode.get(error.errno))
"""


@pytest.fixture
def pilot(site, services, tmp_path):
    """A pilot whose policy has a class, and a destination that is forbidden."""
    policy = tmp_path / "policy"
    policy.write_text(POLICY)
    peer = site.world.start(
        [sys.executable, str(HERE / "traffic_peer.py"), str(FAR.v4), str(FAR.v6), "7000"], log=tmp_path / "peer.log"
    )
    with SiteGateway(site.dmz, tmp_path / "gateway") as gateway:
        pilot = ShellPilot(site, gateway, tmp_path, knobs=(*QUICK, f"JOB_POLICY_FILE={policy}"))
        pilot.gateway = gateway
        yield pilot
        pilot.kill()
    peer.kill()
    peer.wait()


def run_job(pilot, scratch, argv, ad=""):
    scratch.mkdir()
    (scratch / ".job.ad").write_text(f'MyType = "Job"\nRequestCpus = 1\n{ad}\n')
    starter = f"{sys.executable} {HERE}/fake_starter.py $HTCONDOR_VPN_RUN_DIR/libexec {scratch} --prepared 0"
    told = json.loads(pilot.ask(f"{starter} {argv}", 120))
    assert told["status"] == 0, told["err"]
    return told


def ended(pilot):
    """The ledger's row of the job, once it has ended."""
    rows = [row for row in ledger.read(pilot.run_dir / ledger.FILE) if row["outcome"] == "ended"]
    return rows[0] if rows else None


def test_job_and_pilot_and_gateway_count_the_same(pilot, tmp_path):
    client = f"{sys.executable} {HERE}/traffic_client.py"
    script = tmp_path / "job.sh"
    script.write_text(f"{client} get {DOWN_BYTES} {FAR.v4} && {client} put {UP_BYTES} {FAR.v4}")
    with Resends(pilot.command()) as resends:
        told = run_job(pilot, tmp_path / "scratch", f"/bin/sh {script}")
        chirped = told["chirped"]
        assert payload_bytes(chirped, "In") == payload(DOWN_BYTES, resends.segments())
    assert payload_bytes(chirped, "Out") == payload(UP_BYTES, int(told["out"].split()[-1]))
    for way in ("In", "Out"):
        by_class = sum(int(chirped[f"ChirpNetwork{word}Bytes{way}"]) for word in ("Lab", "Other"))
        assert by_class == int(chirped[f"ChirpNetworkBytes{way}"])
        assert int(chirped[f"ChirpNetworkLabBytes{way}"]) == pytest.approx(by_class, rel=0.01)
    assert chirped["ChirpNetworkLabConnections"] == "2"

    def inside():
        state = pilot.state()
        return state if state["bytes_in"] >= DOWN_BYTES and state["bytes_out"] >= UP_BYTES else None

    state = wait_until(inside)
    assert (state["bytes_in"], state["bytes_out"]) == pytest.approx((DOWN_BYTES, UP_BYTES), rel=0.01)

    def charged():
        pilots = sums(pilot.gateway.state_folder, "pilot")
        return pilots[0] if pilots and pilots[0]["bytes_down"] >= DOWN_BYTES <= 2 * pilots[0]["bytes_up"] else None

    charge = wait_until(charged)
    assert (charge["bytes_down"], charge["bytes_up"]) == pytest.approx((DOWN_BYTES, UP_BYTES), rel=0.01)


def test_flight_recorder_knows_names_refusals_and_by_what(pilot, tmp_path, monkeypatch, capsys):
    tries, scratch = tmp_path / "tries.py", tmp_path / "scratch"
    tries.write_text(TRIES)
    told = run_job(pilot, scratch, f"{sys.executable} {tries}", 'VpnFlightRecorder = true\nGlobalJobId = "ap#12.0#1"')
    assert told["out"].split() == ["EHOSTUNREACH", "EACCES", "ECONNREFUSED", "EHOSTUNREACH", "EHOSTUNREACH"]
    flights = json.loads((scratch / "vpn-flight-recorder.json").read_text())
    assert flights["complete"]
    assert {(each["address"], each["port"]): each["reason"] for each in flights["refused"]} == {
        (str(FORBIDDEN.v4), 80): "the policy of this slot forbids it",
        (str(FORBIDDEN.v6), 80): "the policy of this slot forbids it",
        (str(FAR.v4), REFUSED_PORT): "the far side refused the connection",
        ("169.254.1.1", 80): "the gateway prohibits it",
        ("169.254.1.2", 99): "prohibited, or the tunnel is down",
    }
    forbidden = [each["attempts"] for each in flights["refused"] if each["port"] == 80 and "policy" in each["reason"]]
    assert forbidden == [1, 1]  # told at once, and not by the second SYN
    (lab,) = [each for each in flights["destinations"] if each["port"] == 7000]
    assert (lab["address"], lab["name"], lab["class_name"]) == (str(FAR.v4), f"iperf.{plan.ZONE}", "lab")
    assert lab["packets_in"] > 0
    assert len(wait_until(lambda: ended(pilot))["flights"]["refused"]) == 5
    monkeypatch.setenv("HTCONDOR_VPN_RUN_DIR", str(pilot.run_dir))
    assert main(["job", "show", "#12.0#"]) == 0
    said = capsys.readouterr().out
    assert f"talked to    {FAR.v4} (iperf.{plan.ZONE}) tcp port 7000, lab:" in said
    assert f"refused      {FORBIDDEN.v4} tcp port 80: the policy of this slot forbids it, 1 packets" in said
