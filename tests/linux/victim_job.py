"""A job that greets who reaches it, and when it is told to end (SIGTERM) tells all that came.

Usage: victim_job.py PORT FILE, into which it writes its pid and its addresses.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main() -> None:
    port, file = int(sys.argv[1]), Path(sys.argv[2])
    sockets = [
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    ]
    sockets[1].bind(("::", port))
    links = json.loads(subprocess.run(["ip", "-j", "addr", "show", "eth0"], capture_output=True, check=True).stdout)
    own = {("v4" if each["family"] == "inet" else "v6"): each["local"] for each in links[0]["addr_info"]
           if each["scope"] == "global"}  # fmt: skip
    ready = file.with_suffix(".new")
    ready.write_text(json.dumps({"pid": os.getpid(), **own}))
    ready.rename(file)
    heard: list[str] = []

    def tell(*_: object) -> None:
        print(json.dumps(heard), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, tell)
    while True:
        for sock in select.select(sockets, [], [])[0]:
            if sock is sockets[0]:
                connection, peer = sock.accept()
                connection.send(b"welcome\n")
                connection.close()
                heard.append(f"a connection from {peer}")
            else:
                said, peer = sock.recvfrom(2000)
                heard.append(f"{said!r} from {peer}")


if __name__ == "__main__":
    main()
