"""A whole site in one sandbox: a node that reaches nothing but the DMZ, a DMZ that forwards nothing, and the world.

    node ----- line ----- dmz ----- world

Each is a network namespace with a host's files around it. `line` is the node's cable: a namespace between node and DMZ
that neither of them can look into, where the link is shaped, cut and captured (`links`, `capture`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.ancestry import identity
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import leftovers, plan, sandbox
from htcondor_vpn.testbed.host import Host, ordinary_user_namespace
from htcondor_vpn.testbed.links import DMZ_END, NODE_END, Link
from htcondor_vpn.testbed.settling import ip, not_usable, settle

NODE, DMZ, WORLD, LINE = "node", "dmz", "world", "line"

#: The names of a host's links; the node has the first only.
SITE_LINK, WORLD_LINK = "eth0", "eth1"

_STOP_SECONDS = 5.0


class Site:
    """The simulated site, up from `with` on; usable as root of the sandbox only.

    `rate_mbps` (each way), `delay_ms` (one way, each way) and `loss` (0 to 1, each way) shape the node's link.
    `default_route` gives the node a way out by its routing table, through a DMZ that drops it: what leaks then shows
    on the link instead of being refused by the node itself.
    """

    def __init__(
        self, rate_mbps: float | None = None, delay_ms: float = 0, loss: float = 0, *, default_route: bool = False
    ) -> None:
        self._shape = rate_mbps, delay_ms, loss
        self._default_route = default_route
        self._exits = ExitStack()

    def __enter__(self) -> Site:
        if not sandbox.inside():
            raise UsageError("a site can be made in a sandbox only", "use `htcondor-vpn testbed run`")
        with ExitStack() as exits:
            self._exits = exits
            #: Logs and the hosts' files.
            self.folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="site-", dir="/run")))
            self._build(exits)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process of the site and removes it; a second call does nothing. Goes on after an error."""
        self._exits.close()

    def _build(self, exits: ExitStack) -> None:
        for name in (NODE, DMZ, WORLD, LINE):
            ip("", f"netns add {name}")
            exits.callback(ip, "", f"netns delete {name}")
        # The two ends' numbers must differ: for equal ones, although in two namespaces, the kernel (linkwatch) takes
        # up to a second to notice a carrier.
        ip(
            "",
            f"link add {SITE_LINK} index 11 netns {NODE} type veth peer name {NODE_END} index 21 netns {LINE}",
            f"link add {SITE_LINK} index 12 netns {DMZ} type veth peer name {DMZ_END} index 22 netns {LINE}",
            f"link add {WORLD_LINK} index 13 netns {DMZ} type veth peer name {SITE_LINK} index 31 netns {WORLD}",
        )
        user = ordinary_user_namespace()
        exits.callback(os.close, user)
        self._user_namespace = identity(user)
        self.node = self._host(exits, NODE, user)
        self.dmz = self._host(exits, DMZ, user)
        self.world = self._host(exits, WORLD, user)
        line = Host(LINE, {})
        exits.callback(line.close)
        exits.callback(self._end_processes)

        for where, name, pair in (
            (NODE, SITE_LINK, plan.NODE), (DMZ, SITE_LINK, plan.DMZ_INSIDE), (DMZ, WORLD_LINK, plan.DMZ_OUTSIDE),
            *((WORLD, SITE_LINK, pair) for pair in plan.WORLD.values()),
        ):  # fmt: skip
            v4, v6 = plan.on_link(pair)
            ip(where, f"addr add {v4} dev {name}", f"addr add {v6} dev {name} nodad")
        for where, name in ((NODE, SITE_LINK), (DMZ, SITE_LINK), (DMZ, WORLD_LINK), (WORLD, SITE_LINK)):
            ip(where, "link set lo up", f"link set {name} up")
        # Ordinary users may ping everywhere, and in the world serve DNS and HTTP on their usual ports.
        for host in (self.node, self.dmz, self.world):
            self._sysctl(host, "net.ipv4.ping_group_range=0 0")
        self._sysctl(self.world, "net.ipv4.ip_unprivileged_port_start=0")
        if self._default_route:
            ip(NODE, f"route add default via {plan.DMZ_INSIDE.v4}", f"route add default via {plan.DMZ_INSIDE.v6}")
        #: The node's link, to be shaped and cut.
        self.link = Link(line, self.folder)
        exits.callback(self.link.close)
        self.link.shape(*self._shape)
        for host in (self.node, self.dmz, self.world):
            settle(host, not_usable)

    def _host(self, exits: ExitStack, name: str, user: int) -> Host:
        resolver, hosts = self.folder / f"{name}.resolv.conf", self.folder / f"{name}.hosts"
        # The node asks the same server, which it cannot reach, as on many sites; others may have to wait for it.
        patience = "timeout:1 attempts:2" if name == NODE else "timeout:5 attempts:5"
        resolver.write_text(f"nameserver {plan.WORLD['dns'].v4}\noptions {patience}\n")
        own = {NODE: plan.NODE, DMZ: plan.DMZ_INSIDE, WORLD: plan.WORLD["cm"]}[name]
        lines = ["127.0.0.1 localhost", "::1 localhost", f"{own.v4} {name}.{plan.ZONE} {name}"]
        if name == NODE:
            lines.append(f"{plan.DMZ_INSIDE.v4} {plan.GATEWAY_NAME}")
        hosts.write_text("\n".join(lines) + "\n")
        host = Host(name, {"/etc/resolv.conf": resolver, "/etc/hosts": hosts}, user)
        exits.callback(host.close)
        return host

    @staticmethod
    def _sysctl(host: Host, *settings: str) -> None:
        host.run([find_program("sysctl", "procps"), "-qw", *settings], as_root=True, check=True)

    def processes(self) -> list[int]:
        """Returns every process on the site's hosts, those in namespaces below an ordinary user's included."""
        return leftovers.processes((NODE, DMZ, WORLD, LINE), self._user_namespace)

    def processes_of_node(self) -> list[int]:
        """Returns those of the node alone, and those in networks that pilots and jobs on it have made."""
        return leftovers.processes((NODE,), self._user_namespace, without=(DMZ, WORLD, LINE))

    def _end_processes(self) -> None:
        leftovers.end(self.processes, _STOP_SECONDS)

    @contextmanager
    def direct_route(self) -> Iterator[None]:
        """Within, the DMZ forwards between node and world, both ways: how it would be without any tunnel."""
        families = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        ways = [
            (NODE, f"default via {plan.DMZ_INSIDE.v4}"), (NODE, f"default via {plan.DMZ_INSIDE.v6}"),
            (WORLD, f"{plan.NODE.v4} via {plan.DMZ_OUTSIDE.v4}"), (WORLD, f"{plan.NODE.v6} via {plan.DMZ_OUTSIDE.v6}"),
        ]  # fmt: skip
        with ExitStack() as exits:
            exits.callback(self._sysctl, self.dmz, *(f"{name}=0" for name in families))
            self._sysctl(self.dmz, *(f"{name}=1" for name in families))
            for host, way in ways:
                if self._default_route and host == NODE:
                    continue
                ip(host, f"route add {way}")
                exits.callback(ip, host, f"route delete {way}")
            yield
