"""The inner namespaces: made by the process that then becomes the broker, entered by whoever else belongs there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.errors import NamespacesUnavailable
from htcondor_vpn.jobnet.broker import serve as serve_jobs
from htcondor_vpn.jobnet.policy.policy import make_policy
from htcondor_vpn.jobnet.policy.source import Source
from htcondor_vpn.linux import mounts
from htcondor_vpn.linux.ancestry import Identity, identity, kill_within
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, CLONE_NEWNS, KINDS, new_user_namespace, setns
from htcondor_vpn.pilot.run_folder import RunFolder
from htcondor_vpn.route_rules import led_beside
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.catching.catcher import catch, catch_more

#: Where the host's own name services listen. UNIX sockets cross network namespaces: they would answer for the host.
_NAME_SERVICES = (Path("/run/nscd"), Path("/run/systemd/resolve"), Path("/run/avahi-daemon"))


class InnerNamespaces(NamedTuple):
    """Descriptors of the three namespaces, which keep them alive."""

    user: int
    mnt: int
    net: int

    @classmethod
    def of(cls, pid: int) -> InnerNamespaces:
        """Opens those of a process; raises OSError."""
        return cls(*(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS))

    def enter(self) -> None:
        """Moves this process there, with the capabilities of their owner; raises OSError."""
        for descriptor in self:
            setns(descriptor)

    def identity(self) -> Identity:
        """Identifies the user namespace."""
        return identity(self.user)

    def close(self) -> None:
        for descriptor in self:
            os.close(descriptor)


def make_and_serve(
    channel: Channel, folder: RunFolder, settings: Settings, nft: str, rules: Source | None, memory: int
) -> None:
    """The first broker's process: makes the namespaces, then the catcher, hands out the sockets, and serves.

    Says {"made": true}; told {"catch": families, "udp": whether}, it answers {"kinds": …} with the sockets, which are
    not kept here. Of the policy (`rules`) a first mistake is told before anything is made; `memory` is for `serve`.
    """
    try:
        policy = make_policy(rules, settings)
        if _make(channel, folder, settings, nft):
            serve_jobs(channel.sock, settings, folder.path, policy, memory, catch_more)
    finally:
        clear_up(channel, folder)


def _make(channel: Channel, folder: RunFolder, settings: Settings, nft: str) -> bool:
    """Returns False if the pilot ends before there was anything to catch."""
    new_user_namespace(CLONE_NEWNET | CLONE_NEWNS)
    try:
        mounts.keep_mounts_to_ourselves()
        _only_our_resolver(folder.resolv_conf)
        _keep_programs_from_jobs(folder)
    except OSError as error:
        raise NamespacesUnavailable(
            f"{error.filename} cannot be replaced inside: {error.strerror}", "ask whether mounts are forbidden here"
        ) from error
    channel.send({"made": True})
    if (told := channel.receive()) is None:
        return False
    families = told[0]["catch"]
    besides = led_beside(settings.routes, families)
    sockets = catch(nft, families, told[0]["udp"], settings.hold_connects, besides)
    channel.send({"kinds": sockets.kinds()}, [sock.fileno() for sock in sockets.all()])
    for sock in sockets.all():
        sock.close()
    return True


def enter_and_serve(
    namespaces: InnerNamespaces,
    channel: Channel,
    folder: RunFolder,
    settings: Settings,
    rules: Source | None,
    memory: int,
) -> None:
    """A later broker's process: enters the namespaces that exist, and serves."""
    namespaces.enter()
    namespaces.close()
    try:
        serve_jobs(channel.sock, settings, folder.path, make_policy(rules, settings), memory, catch_more)
    finally:
        clear_up(channel, folder)


def clear_up(channel: Channel, folder: RunFolder, user_namespace: Identity | None = None) -> None:
    """What broker and engine do last: where the supervisor was killed, its part of the end.

    Kills what lives within `user_namespace`, if it is given, and leaves the run folder. The broker has killed it all
    before; the engine does it again for the case that the broker was killed too.
    """
    try:
        channel.send({"ended": True})
    except OSError:
        if user_namespace is not None:
            kill_within(user_namespace)
        for path in (folder.libexec, folder.path):
            with suppress(OSError):  # the engine is not in that mount namespace
                mounts.unmount(path)
        folder.leave()


def _keep_programs_from_jobs(folder: RunFolder) -> None:
    """A job has the pilot's uid: it may not lay its own wrapper where the next job's is looked for. Raises OSError."""
    mounts.pin(folder.path)
    mounts.pin(folder.libexec, read_only=True)


def _only_our_resolver(resolv_conf: Path) -> None:
    """Makes names inside resolve through the tunnel alone; raises OSError."""
    for folder in _NAME_SERVICES:
        if folder.is_dir():
            mounts.hide(folder)
    target = Path(os.path.realpath("/etc/resolv.conf"))
    if not target.exists():  # a link into a folder that was just hidden
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        except OSError as error:
            raise NamespacesUnavailable(
                f"there is no {target} that could be replaced inside: {error.strerror}",
                "have the node's admin make /etc/resolv.conf, be it empty",
            ) from error
    mounts.bind(resolv_conf, target)
