"""What else a pilot finds on a node: Python, programs, limits, a folder to write in."""

from __future__ import annotations

import os
import resource
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from htcondor_vpn.doctor.finding import Finding, bad, good, limited, unknown
from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux import wireguard_go
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.carriers.openconnect_process import find_library

#: A run folder with its log, and an unpacked bundle.
_NEEDED_BYTES = 100e6

_OLDEST_PYTHON = (3, 9)
_DESCRIPTORS = 1024
_PROCESSES = 256
_SECONDS = 10


def python() -> Finding:
    """The Python that runs this: a bundle's own, or the node's."""
    said = f"{sys.version.split()[0]} with {ssl.OPENSSL_VERSION} at {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON:
        return bad("Python", said, "install Python 3.9 or newer (or make the bundle with --with-python)")
    if not ssl.HAS_TLSv1_3:
        return bad("Python", f"{said}, without TLS 1.3", "install a Python with OpenSSL 1.1.1 or newer")
    return good("Python", said)


def scratch_folder(folder: Path | None = None) -> Finding:
    """Whether a pilot's folder can be made where it would be: room, sockets, and programs that can be executed."""
    place = folder or Path(tempfile.gettempdir())
    name = "folder"
    try:
        status = os.statvfs(place)
    except OSError as error:
        return bad(name, f"{place} cannot be used: {error.strerror}", "set TMPDIR to a folder on the node's own disk")
    free_bytes = status.f_bavail * status.f_frsize
    if status.f_flag & os.ST_RDONLY or not os.access(place, os.W_OK | os.X_OK):
        return bad(name, f"{place} cannot be written", "give jobs a TMPDIR on the node's own disk that they may write")
    if free_bytes < _NEEDED_BYTES or (status.f_files and not status.f_favail):
        return bad(
            name,
            f"{free_bytes / 1e6:.0f} MB are free in {place}",
            f"give jobs a TMPDIR with {_NEEDED_BYTES / 1e6:.0f} MB",
        )
    if status.f_flag & os.ST_NOEXEC:
        ask = "give jobs a TMPDIR in which programs may be executed"
        return bad(name, f"{place} is mounted noexec, and HTCondor runs our hooks from there", ask)
    return good(name, f"{free_bytes / 1e6:.0f} MB are free in {place}, and programs can be executed")


def limits(processes: Path = Path("/sys/fs/cgroup/pids.max")) -> Finding:
    """How many descriptors and processes an ordinary user may have."""
    few = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        few.append((f"{hard} descriptors", f"ulimit -n {_DESCRIPTORS}"))
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if most != resource.RLIM_INFINITY and most < _PROCESSES:
        few.append((f"{most} processes", f"ulimit -u {_PROCESSES}"))
    memory = resource.getrlimit(resource.RLIMIT_AS)[1]
    if memory != resource.RLIM_INFINITY:
        few.append((f"{memory / 1e6:.0f} MB of address space for each process", "ulimit -v unlimited"))
    if not few:
        return good("limits", "enough descriptors, processes and address space")
    said = "at most " + ", ".join(what for what, _ in few)
    return limited("limits", said, "raise them for batch jobs: " + "; ".join(mend for _, mend in few))


def fuse(device: Path = Path("/dev/fuse")) -> Finding:
    """Whether file systems of users' own can be mounted inside, for CVMFS and for images of containers."""
    helper = next((path for name in ("fusermount3", "fusermount") if (path := shutil.which(name))), None)
    setuid = helper is not None and bool(os.stat(helper).st_mode & stat.S_ISUID)
    outside = f"{helper} is set-uid, which works outside of the tunnel only" if setuid else "no set-uid fusermount"
    if os.access(device, os.R_OK | os.W_OK):
        return good("FUSE", f"{device} can be opened; {outside}")
    return limited("FUSE", f"{device} cannot be opened; {outside}", f"modprobe fuse; chmod 0666 {device}")


def apptainer() -> Finding:
    """Which container program there is. Inside it works without its set-uid part only, which has no effect there."""
    name = next((name for name in ("apptainer", "singularity") if shutil.which(name)), None)
    if name is None:
        return unknown("Apptainer", "there is none on PATH; jobs without containers need none")
    return good("Apptainer", f"{_says([name, '--version'])}; inside it runs in its user mode (--userns)")


def _says(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip()


def wireguard_program() -> Finding:
    """Whether there is a wireguard-go that we can use."""
    try:
        return good("wireguard-go", wireguard_go.find(None, "HTCONDOR_VPN_WIREGUARD_GO"))
    except VpnError as error:
        return bad("wireguard-go", str(error))


def openconnect_library() -> Finding:
    """Whether there is a libopenconnect."""
    try:
        find_library()
    except VpnError as error:
        return bad("libopenconnect", str(error))
    return good("libopenconnect", "it can be loaded")


def ssh_program() -> Finding:
    """Whether there is an ssh."""
    try:
        return good("ssh", find_program("ssh", "openssh-client"))
    except VpnError as error:
        return bad("ssh", str(error))
