"""A program of its own: libopenconnect over a tun's descriptor that comes from elsewhere, with every message as JSON.

    python3 -IS openconnect_client.py DESCRIPTOR

DESCRIPTOR is a connected SOCK_SEQPACKET socket. The first message to it is {"url", "address", "user", "password",
"certificate", "key", "pins", "ca_file", "dtls", "cookie"}, each a text, a list or null. `address` is the one that the
url's name stands for, where it is known. Its own messages are

    {"refused": why}, {"untrusted": why}, {"failed": why}   it ends, before it was connected
    {"expired": why}                                        the same, as the server does not take the cookie any more
    {"cookie": …, "network": …}                             it is connected; `network` is what the server said of it;
                                                            it waits for a message with the tun's descriptor
    {"transport": "dtls" or "tls"}                          how packets travel from now on
    {"said": …}                                             the library's words, for the log
    {"ended": why}                                          it ends

and it ends as well when the other end of the socket is closed. libopenconnect reconnects by itself, and keeps the tun.

The library is not loaded into the engine: it blocks, and whatever befalls it shall befall no one else. This program
imports the standard library alone, and never changes its network namespace. Source: openconnect.h, API 5.
"""

from __future__ import annotations

import ctypes as c
import errno
import json
import os
import select
import socket
import sys
import threading
import time
from typing import Any

LIBRARY = "libopenconnect.so.5"
_AGENT = b"AnyConnect-compatible htcondor_vpn"
_MESSAGE_BYTES = 64 * 1024
_MAX_ROUTES = 512
_END_SECONDS = 2

# openconnect.h
_TEXT, _PASSWORD = 1, 2
_OK, _CANCELLED = 0, 1
_INFO = 1
_CANCEL = b"x"

#: How often a lost DTLS connection is tried anew; after how much silence a peer is asked whether it lives: after twice
#: of that it counts as dead. Seconds.
_DTLS_ATTEMPT_SECONDS = 15
_DPD_SECONDS = 3
#: How long, and after how many seconds each, the library itself tries to reconnect. Afterwards it takes a new login.
_RECONNECT_SECONDS, _RECONNECT_PAUSE_SECONDS = 30, 1

_ESTABLISHED = "Established DTLS connection"
_DTLS_LOST = ("DTLS Dead Peer Detection", "DTLS handshake failed", "DTLS rekey due", "DTLS got write error")
#: The arguments of printf(3) that a message may have: a variadic function hands them over as those of another one.
_ARGUMENTS = 8


class _Option(c.Structure):
    """struct oc_form_opt"""


_Option._fields_ = [
    ("next", c.POINTER(_Option)), ("type", c.c_int), ("name", c.c_char_p), ("label", c.c_char_p),
    ("value", c.c_void_p), ("flags", c.c_uint), ("reserved", c.c_void_p),
]  # fmt: skip


class _Form(c.Structure):
    """struct oc_auth_form, as far as it is read"""

    _fields_ = (
        ("banner", c.c_char_p), ("message", c.c_char_p), ("error", c.c_char_p), ("auth_id", c.c_char_p),
        ("method", c.c_char_p), ("action", c.c_char_p), ("options", c.POINTER(_Option)),
    )  # fmt: skip


class _Split(c.Structure):
    """struct oc_split_include"""


_Split._fields_ = [("route", c.c_char_p), ("next", c.POINTER(_Split))]


class _Network(c.Structure):
    """struct oc_ip_info, as far as it is read"""

    _fields_ = (
        ("address", c.c_char_p), ("netmask", c.c_char_p), ("address6", c.c_char_p), ("netmask6", c.c_char_p),
        ("dns", c.c_char_p * 3), ("nbns", c.c_char_p * 3), ("domain", c.c_char_p), ("proxy_pac", c.c_char_p),
        ("mtu", c.c_int), ("split_dns", c.POINTER(_Split)), ("includes", c.POINTER(_Split)),
        ("excludes", c.POINTER(_Split)),
    )  # fmt: skip


_Validate = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p)
_NewConfig = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_int)
_ProcessForm = c.CFUNCTYPE(c.c_int, c.c_void_p, c.POINTER(_Form))
_Progress = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p, *([c.c_void_p] * _ARGUMENTS))
_SetupTun = c.CFUNCTYPE(None, c.c_void_p)
_GetAddrInfo = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_char_p, c.c_void_p, c.c_void_p)


class Client:
    """One connection to the server that `request` names, reported on `channel`."""

    def __init__(self, channel: socket.socket, request: dict[str, Any]) -> None:
        self._channel, self._request = channel, request
        self._library = c.CDLL(LIBRARY)
        self._libc = c.CDLL(None)
        self._said = ""  # the library's latest words
        self._untrusted = self._refused = ""
        self._answered = self._expired = False
        self._library.openconnect_init_ssl()
        self._callbacks = (
            _Validate(self._validate), _NewConfig(lambda *_: 0), _ProcessForm(self._process_form),
            _Progress(self._progress), _SetupTun(self._set_up_tun), _GetAddrInfo(self._get_addr_info),
        )  # fmt: skip
        new = self._library.openconnect_vpninfo_new
        new.restype = c.c_void_p
        self._vpn = c.c_void_p(new(_AGENT, *self._callbacks[:4], None))

    def _configure(self) -> None:
        call, request = self._call, self._request
        call("set_loglevel", _INFO, check=False)
        call("set_system_trust", 0, check=False)  # what is trusted is what we were told to
        call("set_dpd", _DPD_SECONDS, check=False)
        call("set_setup_tun_handler", self._callbacks[4], check=False)
        if not request["pins"]:
            call("set_cafile", _file(request["ca_file"]))
        if request["certificate"]:
            call("set_client_cert", _file(request["certificate"]), _file(request["key"]))
        call("parse_url", _bytes(request["url"]))
        if request["address"]:
            call("override_getaddrinfo", self._callbacks[5], check=False)
        if not request["dtls"]:
            call("disable_dtls")

    def _call(self, name: str, *arguments: Any, check: bool = True) -> int:
        result: int = getattr(self._library, f"openconnect_{name}")(self._vpn, *arguments)
        if check and result:
            raise ConnectionError(self._said or f"openconnect_{name} failed with {result}")
        return result

    def run(self) -> None:
        """Connects, and carries packets until it is over."""
        try:
            self._configure()
            command = self._call("setup_cmd_pipe", check=False)
            threading.Thread(target=self._end_with_peer, args=(command,), daemon=True).start()
            self._connect()
            if self._request["dtls"]:
                self._call("setup_dtls", _DTLS_ATTEMPT_SECONDS, check=False)  # without DTLS it goes on over TLS
        except OSError as error:
            if self._untrusted:
                self._tell({"untrusted": self._untrusted})
            elif self._refused:
                self._tell({"refused": self._refused})
            elif self._expired:
                self._tell({"expired": str(error)})
            else:
                self._tell({"failed": str(error)})
            return
        code = self._call("mainloop", _RECONNECT_SECONDS, _RECONNECT_PAUSE_SECONDS, check=False)
        self._tell({"untrusted": self._untrusted} if self._untrusted else {"ended": self._said or f"code {code}"})

    def _connect(self) -> None:
        """Takes up an earlier session if there is one, else logs in."""
        if self._request["cookie"]:
            self._call("set_cookie", _bytes(self._request["cookie"]))
        else:
            self._call("obtain_cookie")
        if code := self._call("make_cstp_connection", check=False):
            self._expired = code == -errno.EPERM
            raise ConnectionError(self._said or f"code {code}")

    def _end_with_peer(self, command: int) -> None:
        """Has the connection ended in order when nobody listens to us any more."""
        poller = select.poll()
        poller.register(self._channel, select.POLLRDHUP)
        poller.poll()
        os.write(command, _CANCEL)
        time.sleep(_END_SECONDS)
        os._exit(1)

    # What the library asks

    def _validate(self, _: int | None, reason: bytes | None) -> int:
        for pin in self._request["pins"]:
            if self._call("check_peer_cert_hash", _bytes(pin), check=False) == 0:
                return 0
        self._untrusted = "its key is another one" if self._request["pins"] else _text(reason) or "it is not valid"
        return -1

    def _process_form(self, _: int | None, form: Any) -> int:
        error = _text(form.contents.error) or _text(form.contents.message)
        option, _asked = form.contents.options, False
        while option:
            value = {_TEXT: self._request["user"], _PASSWORD: self._request["password"]}.get(option.contents.type)
            if option.contents.type in (_TEXT, _PASSWORD):
                if not value or (self._answered and option.contents.type == _PASSWORD):
                    self._refused = error or "it wants a name and a password"
                    return _CANCELLED
                self._library.openconnect_set_option_value(option, _bytes(value))
            self._answered = self._answered or option.contents.type == _PASSWORD
            option = option.contents.next
        return _OK

    def _get_addr_info(self, _: int | None, _node: bytes, service: bytes, hints: int | None, result: int | None) -> int:
        """See getaddrinfo(3). By itself the library would wait for minutes for the first address that is silent."""
        address = _bytes(self._request["address"])
        code: int = self._libc.getaddrinfo(address, service, c.c_void_p(hints), c.c_void_p(result))
        return code

    def _progress(self, _: int | None, level: int, template: bytes, *arguments: int | None) -> None:
        buffer = c.create_string_buffer(1024)
        self._libc.snprintf(buffer, c.c_size_t(len(buffer)), template, *(c.c_void_p(each) for each in arguments))
        said = _text(buffer.value).strip()
        self._tell({"said": said})
        if level < _INFO:
            self._said = said
        if said.startswith(_ESTABLISHED):
            self._tell({"transport": "dtls"})
        elif said.startswith(_DTLS_LOST):
            self._tell({"transport": "tls"})

    def _set_up_tun(self, _: int | None) -> None:
        """Tells what the server has said, and takes the tun that is made of it."""
        found = c.POINTER(_Network)()
        self._call("get_ip_info", c.byref(found), None, None)
        network = found.contents
        get_cookie = self._library.openconnect_get_cookie
        get_cookie.restype = c.c_char_p
        self._tell({
            "cookie": _text(get_cookie(self._vpn)),
            "network": {
                "address": _text(network.address), "address6": _text(network.address6),
                "netmask6": _text(network.netmask6), "dns": [_text(each) for each in network.dns if each],
                "mtu": network.mtu, "includes": _routes(network.includes), "excludes": _routes(network.excludes),
            },
        })  # fmt: skip
        _data, descriptors, _flags, _address = socket.recv_fds(self._channel, _MESSAGE_BYTES, 1)
        if not descriptors:
            os._exit(0)  # nobody wants it any more
        self._call("setup_tun_fd", descriptors[0])

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # there is no one left


def _routes(first: Any) -> list[str]:
    found: list[str] = []
    while first and len(found) <= _MAX_ROUTES:
        found.append(_text(first.contents.route))
        first = first.contents.next
    return found


def _bytes(text: str | None) -> bytes | None:
    return os.fsencode(text) if text else None


def _file(name: str | None) -> bytes | None:
    """The name of a file as the library takes it, which is UTF-8: what has another one is opened for it."""
    encoded = _bytes(name)
    if encoded is None:
        return None
    try:
        encoded.decode()
    except UnicodeDecodeError:
        return b"/proc/self/fd/%d" % os.open(encoded, os.O_RDONLY | os.O_CLOEXEC)
    return encoded


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    Client(channel, json.loads(channel.recv(_MESSAGE_BYTES))).run()


if __name__ == "__main__":
    main()
