"""Writes what passes an interface into a pcap file: `sniffer INTERFACE PCAP`, as a process of its own.

The standard input gives the filter, one line `CODE JT JF K` an instruction (`tcpdump -ddd`), then an empty line; its
end ends the capture. Answers are `listening`, and at the end `PACKETS DROPPED`. tcpdump itself cannot be used: as root
it insists on becoming another user, and there is none in the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import sys
import time
from typing import BinaryIO

#: Bytes kept of a packet: all headers.
SNAP_BYTES = 256

_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_LINKTYPE_ETHERNET = 1


def attach(sock: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """Has the kernel hand over only packets that the classic BPF `program` accepts (socket(7))."""
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = struct.pack("HP", len(program), ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _drain(sock: socket.socket, pcap: BinaryIO) -> None:
    while True:
        try:
            frame = sock.recv(SNAP_BYTES)
        except BlockingIOError:
            pcap.flush()
            return
        except OSError as error:
            if error.errno != errno.ENETDOWN:  # packet(7): told once when the interface goes down, and it may come back
                raise
            continue
        now = time.time()
        pcap.write(struct.pack("=IIII", int(now), int(now % 1 * 1e6), len(frame), len(frame)) + frame)


def main() -> None:
    """Captures until the standard input ends."""
    interface, path = sys.argv[1:]
    program = []
    while line := sys.stdin.readline().strip():
        code, jump_true, jump_false, value = (int(word) for word in line.split())
        program.append((code, jump_true, jump_false, value))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock, open(path, "wb") as pcap:
        pcap.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_BYTES, _LINKTYPE_ETHERNET))
        if program:
            attach(sock, program)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        sock.setblocking(False)
        sock.bind((interface, _ETH_P_ALL))
        print("listening", flush=True)
        while True:
            ready, _, _ = select.select([sock, sys.stdin], [], [])
            if sys.stdin in ready:
                break
            _drain(sock, pcap)
        sock.bind((interface, 0))  # no more from here on, so that what is counted is what is written
        _drain(sock, pcap)  # what has passed the interface is in the socket by now
        packets, dropped = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        print(packets, dropped, flush=True)


if __name__ == "__main__":
    main()
