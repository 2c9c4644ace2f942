"""What the world offers: HTTP, DNS, iperf3, and far sides that misbehave, each as an ordinary user of the site."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import Ledger, wait_for_log
from htcondor_vpn.testbed.site import Site

HTTP_PORT = 80
DNS_PORT = 53
IPERF_PORTS = (5201, 5202)

_STOP_SECONDS = 5.0


class WorldServices:
    """The services of a site's world, all ready from `with` on.

    They listen on the addresses of `plan.WORLD`, IPv4 and IPv6: HTTP and the `oddities` on those of `http`. Logs and
    ledgers lie in the site's folder. `iperf_ports` has an iperf3 server for each port and family.
    """

    def __init__(self, site: Site, iperf_ports: Sequence[int] = IPERF_PORTS) -> None:
        self._site = site
        self._iperf_ports = iperf_ports
        self._exits = ExitStack()
        #: Every HTTP request and DNS query; the fields are described in `http_server` and `dns_server`.
        self.http_ledger = Ledger(site.folder / "http.jsonl")
        self.dns_ledger = Ledger(site.folder / "dns.jsonl")

    def __enter__(self) -> WorldServices:
        with ExitStack() as exits:
            self._start(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _start(self, exits: ExitStack) -> None:
        http, dns = ([str(address) for address in plan.WORLD[name]] for name in ("http", "dns"))
        module = [sys.executable, "-m"]
        commands = {
            "http": [*module, f"{__name__}.http_server", str(self.http_ledger.file), str(HTTP_PORT), *http],
            "dns": [*module, f"{__name__}.dns_server", str(self.dns_ledger.file), str(DNS_PORT), *dns],
            "oddities": [*module, f"{__name__}.oddities", *http],
        }
        for port in self._iperf_ports:
            for address in plan.WORLD["iperf"]:
                commands[f"iperf-{port}-{address}"] = [
                    find_program("iperf3"), "--server", "--bind", str(address), "--port", str(port), "--forceflush",
                ]  # fmt: skip
        started = []
        for name, argv in commands.items():
            log = self._site.folder / f"{name}.log"
            process = self._site.world.start(argv, log=log)
            exits.callback(_end, process)
            started.append((process, log))
        for process, log in started:
            wait_for_log(log, rb"^ready$|^Server listening", process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)


def url(path: str, name: str = "http") -> str:
    """Returns the address of `path` on the world's HTTP server by a name that only the world's DNS server knows."""
    return f"http://{name}.{plan.ZONE}{path}"
