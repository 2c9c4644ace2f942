"""A site's own storage, which the node reaches by itself: HTTP, an echo of datagrams and a name server in the DMZ."""

import sys
from contextlib import ExitStack

from htcondor_vpn.testbed.logs import Ledger, wait_for_log
from htcondor_vpn.testbed.settling import ip

V4, V6 = "10.8.0.1", "fd10:8::1"
HTTP, ECHO, DNS = 8080, 7007, 5353

_ECHO = f"""
import select, socket
socks = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
for sock, address in zip(socks, ("{V4}", "{V6}")):
    sock.bind((address, {ECHO}))
print("ready", flush=True)
while True:
    for sock in select.select(socks, [], [])[0]:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data, peer)
"""


class Storage:
    """On the site's DMZ and in the node's routes from `with` on."""

    def __init__(self, site, folder):
        self._site, self._folder = site, folder
        self.http, self.dns = Ledger(folder / "http.jsonl"), Ledger(folder / "dns.jsonl")
        self._exits = ExitStack()

    def __enter__(self):
        with ExitStack() as exits:
            for where, line in (
                ("dmz", f"addr add {V4}/32 dev lo"), ("dmz", f"addr add {V6}/128 dev lo"),
                ("node", "route add 10.8.0.0/16 via 10.1.0.1"), ("node", "route add fd10:8::/32 via fd10:1::1"),
            ):  # fmt: skip
                ip(where, line)
                exits.callback(ip, where, line.replace(" add ", " delete "))
            services = "htcondor_vpn.testbed.services"
            for name, argv in {
                "http": ["-m", f"{services}.http_server", str(self.http.file), str(HTTP), V4, V6],
                "dns": ["-m", f"{services}.dns_server", str(self.dns.file), str(DNS), V4, V6],
                "echo": ["-c", _ECHO],
            }.items():
                log = self._folder / f"{name}.log"
                process = self._site.dmz.start([sys.executable, *argv], log=log)
                exits.callback(process.wait, 60)
                exits.callback(process.kill)
                wait_for_log(log, b"^ready$", process)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_):
        self._exits.close()
