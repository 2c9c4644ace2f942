"""The job hooks: `prepare-job` (PREPARE_JOB_BEFORE_TRANSFER) and `update-job-info` (UPDATE_JOB_INFO).

Each stands in `RUN_DIR/libexec` and runs the compiled form of this file with the interpreter's `-IS`; the name by
which it was started says which it is. The broker decides (protocol.py); a hook only carries the job ad there and the
answer back. When no broker answers, `prepare-job` sends the job back to the queue: without a broker no job has its
network.

What runs once per job is fast: `_socket` is what `socket` wraps, without the time that its import takes.
"""

from __future__ import annotations

import _socket
import os
import sys

VERBS = {"prepare-job": "prepare", "update-job-info": "update"}
ANSWER_SECONDS = 10.0
LONGEST_AD_BYTES = 8 << 20
BROKER_UNREACHABLE = 300


def read_ad() -> bytes:
    """Reads the job ad from stdin, all of it, also where nobody needs it: HTCondor's pipe must not break."""
    chunks: list[bytes] = []
    size = 0
    while True:
        chunk = os.read(0, 1 << 20)
        if not chunk:
            return b"".join(chunks)
        size += len(chunk)
        if size <= LONGEST_AD_BYTES:
            chunks.append(chunk)


def body_of(ad: bytes) -> bytes:
    """What the broker gets to decide: where the starter has written the slot's ad, and the job's."""
    machine = os.fsencode(os.environ.get("_CONDOR_MACHINE_AD", ""))
    return b"machine " + machine + b"\n\n" + ad


def ask(path: str, verb: str, body: bytes) -> bytes:
    """Sends `body` to the broker and returns its answer's text; raises OSError."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.settimeout(ANSWER_SECONDS)
    sock.connect(path)
    try:  # noqa: SIM105  contextlib takes time to import
        sock.sendall(f"{verb} {len(body)}\n".encode() + body)
    except BrokenPipeError:
        pass  # a broker that refuses who asks does not wait for what; it has said why
    received = b""
    while True:
        header, end, answer = received.partition(b"\n")
        status, _, length = header.partition(b" ")
        if end and len(answer) >= int(length):
            break
        data = sock.recv(1 << 16)
        if not data:
            raise OSError("the broker closed the connection")
        received += data
    sock.close()
    if status != b"ok":
        raise OSError(os.fsdecode(answer).strip())
    return answer[1:]  # an answer has a text alone, after the empty line


def outcome(code: int, message: str) -> bytes:
    """The lines by which HTCondor learns that a job cannot run."""
    quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return os.fsencode(f'HookStatusCode = {code}\nHookStatusMessage = "{quoted}"\n')


def main(argv: list[str]) -> int:
    """Runs the hook; returns its exit code, which is 0: HTCondor learns from stdout."""
    name = os.path.basename(argv[0])
    verb = VERBS.get(name)
    if verb is None:
        os.write(2, f"htcondor-vpn: there is no hook {name}\n".encode())
        return 64
    run_dir = os.path.dirname(os.path.dirname(os.path.abspath(argv[0])))
    ad = read_ad()
    try:
        answer = ask(os.path.join(run_dir, "broker.sock"), verb, body_of(ad) if verb == "prepare" else b"")
    except (OSError, ValueError) as error:
        message = f"the job network's broker does not answer: {error}"
        os.write(2, f"htcondor-vpn: {message}\n".encode())
        answer = outcome(BROKER_UNREACHABLE, message) if verb == "prepare" else b""
    while answer:
        answer = answer[os.write(1, answer) :]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
