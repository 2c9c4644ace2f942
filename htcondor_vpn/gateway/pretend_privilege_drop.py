"""Executes a program for which setuid(2) and its kin, and TUNSETOWNER, seem to succeed: `… PROGRAM [ARGUMENT…]`.

ocserv drops privileges that a user namespace with a single uid has no other uid for, and ends when it cannot. Here it
is told that it could: it keeps running as the one uid that there is, and nothing is gained by it. x86-64 alone.
Source of the filter: seccomp(2); numbers: asm/unistd_64.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_ALLOW, _SUCCEED = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_AUDIT_ARCH_X86_64 = 0xC000003E
_SETTERS = (105, 106, 113, 114, 116, 117, 119)  # setuid setgid setreuid setregid setgroups setresuid setresgid
_IOCTL, _TUNSETOWNER = 16, 0x400454CC
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def _program() -> bytes:
    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("<HBBI", code, then, otherwise, value)

    steps = [
        step(_LOAD, 4),
        step(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1, 0),
        step(_RETURN, _ALLOW),
        step(_LOAD, 0),
    ]
    for number in _SETTERS:
        steps += [step(_JUMP_EQUAL, number, 0, 1), step(_RETURN, _SUCCEED)]
    steps += [
        step(_JUMP_EQUAL, _IOCTL, 0, 3),
        step(_LOAD, 24),
        step(_JUMP_EQUAL, _TUNSETOWNER, 0, 1),
        step(_RETURN, _SUCCEED),
        step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def main() -> None:
    if platform.machine() != "x86_64":
        sys.exit("pretend_privilege_drop: the filter is written for x86-64")
    code = _program()
    memory = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(memory)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header)):
        if libc.prctl(*arguments) != 0:
            sys.exit(f"pretend_privilege_drop: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
