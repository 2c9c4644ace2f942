"""A bundle on the simulated node: made once, and a command of few needs that fetches a file through the tunnel."""

import os
from contextlib import contextmanager

from htcondor_vpn.testbed.services import payload
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go

FETCHED_BYTES = 1_000_000

#: In the smallest Debian there is no curl; bash resolves the name, and fetches.
FETCH = f"""
exec 3<>/dev/tcp/http.site.example/80
printf 'GET /bytes/{FETCHED_BYTES} HTTP/1.0\\r\\nHost: http.site.example\\r\\n\\r\\n' >&3
tail -c {FETCHED_BYTES} <&3 | sha256sum
"""
WANTED = f"{payload.sha256(FETCHED_BYTES)}  -"


@contextmanager
def helpers_on_path():
    """The helpers of this machine that a bundle takes along, where they are found."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{before}{os.pathsep}{wireguard_go().parent}{os.pathsep}/usr/sbin:/sbin"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def told_of(gateway):
    """The options that name a stream gateway."""
    return ["--gateway", gateway.endpoints[0], "--pin-file", gateway.pin_file, "--token-file", gateway.token_file]


def must_have_fetched(done):
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == WANTED


@contextmanager
def full_disk(host, folder):
    """Within, the host has a file system without room at that folder."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=1777", "none", str(folder)]
    host.run(mount, as_root=True, check=True)
    try:
        host.run(["sh", "-c", f"head -c 100000 /dev/zero >{folder}/full"])
        yield
    finally:
        host.run(["umount", "--lazy", str(folder)], as_root=True, check=True)
