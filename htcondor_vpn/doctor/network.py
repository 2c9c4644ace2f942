"""Where a node can go by itself: to a gateway by TCP and UDP, and to a login node by ssh."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import subprocess
import time

from htcondor_vpn.doctor.finding import Finding, bad, good, limited, unknown
from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.linux.programs import find_program

_SECONDS = 5.0
_SSH_SECONDS = 15.0


def tcp(host: str, port: int, seconds: float = _SECONDS) -> Finding:
    """Whether a TLS server answers there; no credential is sent, and its key is not checked."""
    name = f"gateway {host}:{port}, TCP"
    begin = time.monotonic()
    try:
        sock = socket.create_connection((host, port), seconds)
    except socket.gaierror as error:
        return bad(name, f"the name does not resolve on this node: {error.strerror}", "give the gateway's address")
    except OSError as error:
        why = error.strerror or "no answer"
        return bad(name, f"it cannot be reached: {why}", f"let the nodes connect to {host}, TCP port {port}")
    milliseconds = (time.monotonic() - begin) * 1e3
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with sock:
        try:
            with context.wrap_socket(sock, server_hostname=host) as stream:
                said = f"it answers in {milliseconds:.1f} ms, with {stream.version()}"
                if stream.version() == "TLSv1.3":
                    return good(name, said)
                return bad(name, f"{said}: not a gateway of ours, or something in between", "leave TLS 1.3 as it is")
        except OSError as error:
            why = getattr(error, "reason", None) or error.strerror or "no answer"
            ask = f"let TLS pass unchanged between the nodes and {host}, TCP port {port}"
            return bad(name, f"it can be reached, and does not speak TLS: {why}", ask)


def udp(host: str, port: int, seconds: float = 1.0) -> Finding:
    """Whether a datagram is refused there. Silence tells nothing: a WireGuard server answers its own pilots only."""
    name = f"server {host}:{port}, UDP"
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            sock.send(b"\0")
            if not select.select([sock], [], [], seconds)[0]:
                return unknown(name, "nothing refuses datagrams; whether they arrive only the server can tell")
            sock.recv(1)
    except socket.gaierror as error:
        return bad(name, f"the name does not resolve on this node: {error.strerror}", "give the server's address")
    except OSError as error:
        said = f"datagrams are refused: {os.strerror(error.errno or errno.EIO)}"
        return bad(name, said, f"let the nodes send to {host}, UDP port {port}")
    return good(name, "it answers")


def ssh(destination: str) -> Finding:
    """Whether ssh logs in there without a question, as the engine `ssh` does."""
    name = f"login node {destination}, ssh"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS:.0f}", "-o", "StrictHostKeyChecking=yes"]
    try:
        argv = [find_program("ssh", "openssh-client"), "-T", *options, "-o", "ControlPath=none"]
        argv += ["--", destination, "true"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SSH_SECONDS, check=False
        )
    except ProgramMissing as error:
        return bad(name, error.cause, "install OpenSSH's client")
    except subprocess.TimeoutExpired:
        return bad(name, f"no answer within {_SSH_SECONDS:.0f} s", f"let the nodes connect to {destination} by ssh")
    if done.returncode == 0:
        return good(name, "it lets us in without a password")
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode != 255:
        return limited(name, f"it lets us in, but runs no commands: {said}")
    return bad(name, said, f"let the nodes log in to {destination} by ssh, with a key")
