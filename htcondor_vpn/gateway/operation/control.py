"""The running gateway's ear for its operator: a UNIX socket in its folder, which only its owner can enter.

A request is one message, and so is the answer; what is long in it comes as a descriptor of memory.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import GatewayFolderError, GatewayNotRunning
from htcondor_vpn.gateway.trust.folder import locked
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.loop import Loop

log = logging.getLogger(__name__)

FILE = "control.sock"
_ANSWER_SECONDS = 30.0

Answer = dict[str, Any]
Identity = tuple[int, int]


class ControlSocket:
    """Listens in `folder`, and has `answer` make an answer of each request; a later gateway takes its place.

    `former` is the descriptor of one that a former program has made: a new one would need room on the disk, and is made
    only where that one has lost its name. A connection is kept until its other end goes: so that who asks can wait for
    the gateway's own end.
    """

    def __init__(
        self, folder: Path, loop: Loop, answer: Callable[[Answer, Channel], None], former: int | None = None
    ) -> None:
        self._loop, self._answer = loop, answer
        self._folder, self._path = folder, folder / FILE
        self._listener, self._identity = _listen(folder) if former is None else _found(folder, former)
        self._channels: set[Channel] = set()
        loop.watch(self._listener, self._accept)

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        """Listens no more, and removes the socket if it is still this one."""
        self._listener.close()
        with suppress(OSError, GatewayFolderError), locked(self._folder):  # a later one may be about to make its own
            if _identity(self._path) == self._identity:
                self._path.unlink()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it has given up, or there are no descriptors left
        sock.setblocking(False)
        channel = Channel(sock)
        self._channels.add(channel)
        self._loop.watch(channel, lambda: self._asked(channel))

    def _asked(self, channel: Channel) -> None:
        try:
            received = channel.receive()
            if received is not None:
                self._answer(received[0], channel)
                return
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            pass  # what speaks there is no command of ours
        self._loop.forget(channel)
        self._channels.discard(channel)
        channel.close()


def reply(channel: Channel, answer: Answer) -> None:
    """Sends an answer of any length, if the other end is still there."""
    descriptor = os.memfd_create("htcondor-vpn-answer")
    try:
        with open(descriptor, "w", closefd=False) as file:
            json.dump(answer, file)
        with suppress(OSError):
            channel.send({}, [descriptor])
    finally:
        os.close(descriptor)


class Connection:
    """The operator's end; a context manager. Raises `GatewayNotRunning`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(_ANSWER_SECONDS)
        try:
            with _short(folder) as path:
                sock.connect(path)
        except OSError as error:
            sock.close()
            raise self._failure(error.strerror or str(error)) from error
        self._channel = Channel(sock)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, request: Answer) -> Answer:
        """Sends a request and returns the answer."""
        try:
            self._channel.send(request)
            received = self._channel.receive()
        except OSError as error:
            raise self._failure(str(error)) from error
        if received is None:
            raise self._failure("it ended")
        (descriptor,) = received[1]
        with open(descriptor) as file:
            file.seek(0)
            answer: Answer = json.load(file)
        return answer

    def ended(self) -> None:
        """Waits until the gateway's program has ended."""
        self._channel.sock.settimeout(None)
        while self._channel.receive() is not None:
            pass

    def tell(self, request: Answer, timeout_seconds: float) -> Answer | None:
        """Sends a request at which the gateway's program ends, and returns None then, or an answer if it does not."""
        self._channel.sock.settimeout(timeout_seconds)
        try:
            return self.ask(request)
        except GatewayNotRunning:
            return None

    def _failure(self, why: str) -> GatewayNotRunning:
        return GatewayNotRunning(
            f"no gateway answers in {self._folder}: {why}", "start it, or name its folder with --dir"
        )


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def _short(folder: Path, name: str = FILE) -> Iterator[str]:
    """Within, there is a path for the socket in `folder` that is never too long for one (108 bytes, unix(7))."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _found(folder: Path, former: int) -> tuple[socket.socket, Identity | None]:
    """A former program's socket, and what it is in the folder; None if it is not there, and no other one can be."""
    listener = socket.socket(fileno=former)
    try:
        return listener, _identity(folder / FILE)
    except OSError:  # a gateway that had taken its place for a while is gone
        try:
            anew = _listen(folder)
        except GatewayFolderError as error:
            log.error("%s", error)
            return listener, None
        listener.close()
        return anew


def _listen(folder: Path) -> tuple[socket.socket, Identity]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    temporary = f".{FILE}.{os.getpid()}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(folder / temporary)
        with _short(folder, temporary) as path:
            listener.bind(path)
            os.chmod(path, 0o600)
        listener.listen(16)
        identity = _identity(folder / temporary)
        with locked(folder):
            os.replace(folder / temporary, folder / FILE)  # a former gateway's, which may still serve its flows
    except GatewayFolderError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        cause = f"{folder / FILE} cannot be made: {error.strerror}"
        raise GatewayFolderError(cause, "check the folder's owner and the disk") from error
    return listener, identity
