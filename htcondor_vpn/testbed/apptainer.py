"""A real Apptainer, from Debian sid, in a root file system of its own: Debian 12 has none.

It builds images as root of a user namespace with all of a system's uids, so that a container's root, who lacks
capabilities, can build them as well.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path

from htcondor_vpn.linux.namespaces import CLONE_NEWUSER, die_with_parent, unshare
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.cache import cache_folder, make_once
from htcondor_vpn.testbed.debian_sources import main_mirror
from htcondor_vpn.testbed.set_up_command import say

SUITE = "sid"
USER = "pilot"
_UID = 1000
_INCLUDE = "apptainer,debootstrap,ca-certificates,python3"
_DEBOOTSTRAP_SECONDS = 1200.0

#: Makes "$1" the root of this mount namespace and runs the rest of its arguments there, as the first process' child.
_ENTER = """
root=$1; shift
mount --bind "$root" "$root"
for folder in proc dev sys; do mount --rbind /$folder "$root/$folder"; done
mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
mount -t proc proc /proc
cd /
"$@"
exit $?
"""


def root_folder() -> Path:
    """Returns the folder with the file system, which is made (90 s, 460 MB) if it is not in the cache; for root only.

    Raises as `make_once`.
    """
    folder = cache_folder() / "apptainer" / SUITE
    make_once(f"the apptainer of {SUITE}", folder, folder.exists, lambda: _build(folder))
    return folder


def _build(folder: Path) -> None:
    new = folder.with_name(f".{SUITE}-new")
    if new.exists():
        shutil.rmtree(new)
    say(f"making a root file system with the apptainer of {SUITE}")
    argv = ["debootstrap", "--variant=minbase", f"--include={_INCLUDE}", SUITE, str(new), main_mirror()]
    run_program(argv, timeout_seconds=_DEBOOTSTRAP_SECONDS)
    for name, line in (("passwd", f"{USER}:x:{_UID}:{_UID}::/home/{USER}:/bin/sh"), ("group", f"{USER}:x:{_UID}:")):
        with (new / "etc" / name).open("a") as file:
            file.write(f"{line}\n")
    shutil.copy("/etc/resolv.conf", new / "etc/resolv.conf")
    (new / "home" / USER).mkdir()
    os.chown(new / "home" / USER, _UID, _UID)
    new.rename(folder)


def run_in(root: Path, argv: list[str], *, timeout_seconds: float, as_user: bool = False, network: bool = True) -> int:
    """Runs `argv` in `root` and namespaces of its own, as its root or its ordinary user; returns the exit code.

    Without `network` it has a network namespace of its own, in which the loopback is up, 203.0.113.1 is an address,
    and a route leads nowhere. All processes end with it, after `timeout_seconds` (code -9), and with us.
    """
    user = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"] if as_user else []
    home = f"/home/{USER}" if as_user else "/root"
    # debootstrap makes no devices in what it takes for a container: a user namespace must not either.
    inner = ["env", "-i", "container=lxc", f"HOME={home}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
    enter = ["sh", "-ec", _ENTER, "enter", str(root), *inner, *user, *argv]
    loopback = 'ip link set lo up; ip address add 203.0.113.1/32 dev lo; ip route add default dev lo; exec "$@"'
    alone = [] if network else ["unshare", "--net", "sh", "-ec", loopback, "alone"]
    outer = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", *alone, *enter]
    made, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(made[1], b"x")
            os.read(mapped[0], 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            die_with_parent(signal.SIGKILL)
            os.execvp(outer[0], outer)
        finally:
            os._exit(127)
    try:
        os.close(made[1])
        if os.read(made[0], 1):
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text("0 0 65536")
            os.write(mapped[1], b"x")
    finally:
        for descriptor in (made[0], *mapped):
            os.close(descriptor)
        ended = os.pidfd_open(pid)
        if not select.select([ended], [], [], timeout_seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
