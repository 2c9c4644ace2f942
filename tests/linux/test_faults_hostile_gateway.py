"""A gateway that is the right one by its key, is healthy, and then answers nonsense to what it is asked for."""

import sys
from contextlib import ExitStack
from pathlib import Path

import hostile_peer

from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log

CLIENT = """
import socket, struct, sys
from concurrent.futures import ThreadPoolExecutor
flows, datagrams, names = map(int, sys.argv[1:])

def ask(what, number, address, question, kind):
    sock = socket.socket(type=kind)
    sock.settimeout(60 if what == "name" else 3)
    try:
        sock.connect(address)
        sock.send(question)
        said = len(sock.recv(70000))
    except OSError as error:
        said = type(error).__name__
    sock.close()
    print(f"{what} {number} {said}\\n", end="")

def query(number):
    return struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\\x02q%d\\x04test\\x00\\x00\\x01\\x00\\x01" % number

with ThreadPoolExecutor(16) as pool:
    for number in range(flows):
        pool.submit(ask, "flow", number, ("203.0.113.20", 1000 * flows + number), b"x", socket.SOCK_STREAM)
    for number in range(datagrams):
        pool.submit(ask, "datagrams", number, ("203.0.113.20", 1000 * datagrams + number), b"x", socket.SOCK_DGRAM)
    for number in range(names):
        pool.submit(ask, "name", number, ("198.18.0.1", 53), query(number), socket.SOCK_DGRAM)
"""

PATIENCE = (
    "import sys; from htcondor_vpn.tunnel.carriers import gateway_connections; gateway_connections.FLOW_SECONDS = 2.0\n"
    "from htcondor_vpn.cli.main import main; sys.exit(main())"
)


def test_nonsense_for_flows_datagrams_and_names(sealed, start_pilot, tmp_path):
    """It is refused, cut or passed over, and takes neither the engine nor its memory; no shell ever sees it."""
    pwned = Path("/tmp/pwned")
    log = tmp_path / "log"
    log.touch()
    (tmp_path / "client.py").write_text(CLIENT)
    with SiteGateway(sealed.dmz, tmp_path) as gateway, ExitStack() as ends:
        gateway.stop()
        files = [str(gateway.state_folder / name) for name in ("gateway.crt", "gateway.key")]
        hostile = sealed.dmz.start([sys.executable, hostile_peer.__file__, "10.1.0.1", "8443", *files], log=log)
        ends.callback(hostile.wait)
        ends.callback(hostile.kill)
        wait_for_log(log, b"^ready$", hostile)
        pilot = start_pilot(sealed, gateway, tmp_path, program=PATIENCE)
        parts = pilot.parts()
        counts = [len(hostile_peer.FLOWS), len(hostile_peer.DATAGRAMS), hostile_peer.NAMES]
        said = pilot.ask(f"{sys.executable} {tmp_path}/client.py {' '.join(map(str, counts))}", timeout_seconds=180)
        assert len(said.splitlines()) == sum(counts), said
        assert len([line for line in said.splitlines() if line.startswith("name") and line[-1].isdigit()]) == counts[2]
        assert pilot.parts() == parts
        assert pilot.state()["state"] == "up"
        assert max(map(rss_bytes, parts)) < 100e6
        told = (pilot.run_dir / "run.log").read_text() + (pilot.run_dir / "state.json").read_text()
        assert "Traceback" not in told
        assert [character for character in told if ord(character) < 32 and character != "\n"] == []
        pilot.end()
    assert not pwned.exists()


def rss_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
