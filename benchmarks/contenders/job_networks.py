"""What one would give a job its network with without us. None of it decides, or counts for HTCondor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_MBIT = 10**6
_PLUGINS = Path("/usr/lib/cni")  # of Debian's package containernetworking-plugins


class Script(NamedTuple):
    """Two shell scripts for root on the node, before a job and after it."""

    name: str
    start: str
    end: str


#: By the commands of iproute2 and nftables.
COMMANDS = Script(
    "a shell script of ip, nft and tc",
    start="""
set -e
ip netns add peer
ip link add peer0 type veth peer name eth0 netns peer
ip addr add 192.0.2.0/31 dev peer0
ip link set peer0 up
ip -n peer addr add 192.0.2.1/31 dev eth0
ip -n peer link set eth0 up
ip -n peer link set lo up
ip -n peer route add default via 192.0.2.0
tc qdisc add dev peer0 root tbf rate 100mbit burst 256kb latency 20ms
nft 'add table ip peer; add counter ip peer up; add counter ip peer down'
""",
    end="""
set -e
nft list counters > /dev/null
nft delete table ip peer
ip link del peer0
ip netns del peer
""",
)


def cni(folder: Path) -> Script:
    """By CNI's plugins bridge, host-local and bandwidth, called as a container runtime does (CNI's specification).

    `folder` is for the addresses that are in use.
    """
    network = {"cniVersion": "0.4.0", "name": "peer"}
    ipam = {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": str(folder), "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = json.dumps({**network, "type": "bridge", "bridge": "peer0", "isGateway": True, "ipam": ipam})
    rates = {f"{way}{what}": 100 * _MBIT for way in ("ingress", "egress") for what in ("Rate", "Burst")}
    bandwidth = json.dumps({**network, "type": "bandwidth", **rates})[:-1]
    shared = f"""
set -e
export CNI_PATH={_PLUGINS} CNI_CONTAINERID=peer CNI_NETNS=/run/netns/peer CNI_IFNAME=eth0
"""
    start = f"""{shared}
ip netns add peer
export CNI_COMMAND=ADD
wired=$(printf '%s' '{bridge}' | {_PLUGINS}/bridge)
printf '%s, "prevResult": %s}}' '{bandwidth}' "$wired" | tee {folder}/wired | {_PLUGINS}/bandwidth > /dev/null
"""
    end = f"""{shared}
export CNI_COMMAND=DEL
{_PLUGINS}/bandwidth < {folder}/wired
printf '%s' '{bridge}' | {_PLUGINS}/bridge
ip netns del peer
"""
    return Script("CNI's plugins bridge and bandwidth", start, end)
