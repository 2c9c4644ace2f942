"""Readers that stall, on either side, for as long as they like: the others do not notice, and memory does not grow."""

import sys
import time
from pathlib import Path

import pytest
from shell_pilot import descendants, fetch, upload, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT, payload

COUNT = 10
SIZE = 100_000_000
#: More than what the kernels' buffers on the way hold, by far.
STALLED_BYTES = 60_000_000
SINK_PORT = 4711
HTTP = str(plan.WORLD["http"].v4)

#: Reads a little of many answers, and then nothing until it is told to go on: then all of the first one.
READER = f"""
import hashlib, socket, sys
flows = []
for _ in range({COUNT}):
    flow = socket.create_connection(({HTTP!r}, {HTTP_PORT}), 20)
    flow.sendall(b"GET /bytes/{STALLED_BYTES} HTTP/1.0\\r\\n\\r\\n")
    flows.append((flow, flow.recv(10_000, socket.MSG_WAITALL)))
print("stalled", flush=True)
sys.stdin.readline()
flow, data = flows[0]
digest = hashlib.sha256(data.partition(b"\\r\\n\\r\\n")[2])
while data := flow.recv(1 << 20):
    digest.update(data)
print("read", digest.hexdigest(), flush=True)
"""

#: Sends until nothing is taken any more.
WRITER = f"""
import socket, sys
flows = [socket.create_connection(({HTTP!r}, {SINK_PORT}), 20) for _ in range({COUNT})]
for flow in flows:
    flow.settimeout(0.3)
    try:
        while True: flow.send(bytes(1 << 20))
    except TimeoutError: pass
    except socket.timeout: pass
print("full", flush=True)
sys.stdin.readline()
"""

#: A server that reads nothing.
SINK = f"""
import socket, sys
taken = []
with socket.create_server(({HTTP!r}, {SINK_PORT}), backlog=100) as listener:
    print("ready", flush=True)
    while True: taken.append(listener.accept())
"""


@pytest.fixture
def sink(sealed, tmp_path):
    log = tmp_path / "sink.log"
    log.touch()
    process = sealed.world.start([sys.executable, "-c", SINK], log=log)
    wait_for_log(log, b"^ready$", process)
    yield process
    process.kill()
    process.wait()


def private_bytes(pids):
    """What processes have for themselves alone."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) for text in texts for line in text if line.startswith("Private_Dirty:")) * 1024


@pytest.mark.alone
def test_readers_that_stall(sealed, services, sink, start_pilot, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        pilot = start_pilot(sealed, gateway, tmp_path)
        parts = {
            "pilot": pilot.parts()[:-1],
            "gateway": [gateway.process.pid, *descendants(gateway.process.pid)],
        }

        def seconds():
            begin = time.monotonic()
            assert pilot.ask(fetch(SIZE, 60), timeout_seconds=90) == str(SIZE)
            assert pilot.ask(upload(SIZE // 4), timeout_seconds=90) == str(SIZE // 4)
            return time.monotonic() - begin

        undisturbed = min(seconds() for _ in range(2))
        before = {name: private_bytes(pids) for name, pids in parts.items()}
        pilot.tell(f"mkfifo {tmp_path}/go; exec 9<>{tmp_path}/go")
        for name, code in (("reader", READER), ("writer", WRITER)):
            (tmp_path / f"{name}.py").write_text(code)
            pilot.tell(f"{sys.executable} {tmp_path}/{name}.py <&9 &")
        pilot.wait_for_output(b"^stalled$")
        pilot.wait_for_output(b"^full$", timeout_seconds=120)
        begin = time.monotonic()
        disturbed = []
        while len(disturbed) < 3 or time.monotonic() - begin < 3:
            disturbed.append(seconds())
        for name, pids in parts.items():
            grown = private_bytes(pids) - before[name]
            assert grown < 2 * COUNT * 1.5e6, (name, grown)
        assert min(disturbed) < 2 * undisturbed + 1
        assert pilot.state()["flows"] >= 2 * COUNT
        pilot.ask("echo >&9; echo >&9")
        said = pilot.wait_for_output(b"^read ([0-9a-f]{64})$", timeout_seconds=60)
        assert said[1].decode() == payload.sha256(STALLED_BYTES)
        sink.kill()
        wait_until(lambda: pilot.state()["flows"] == 0)
        pilot.end()
