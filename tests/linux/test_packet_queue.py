"""The queue itself: nothing that comes early is lost, and nothing of a former reader's stays in it."""

import subprocess
import sys

_BEGIN = """
import select, socket, subprocess, sys
from htcondor_vpn.linux.nfqueue import PacketQueue, make_socket, tcp_ends
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.catching.queue_rules import xtables_rules
from htcondor_vpn.addresses import HOLD_QUEUE

subprocess.run(["sh", "-c", "ip link set lo up && ip address add 203.0.113.20/32 dev lo"], check=True)
rules = xtables_rules(4, syns=True)
queue = make_socket(HOLD_QUEUE, 100)
subprocess.run([find_program("iptables-nft-restore"), "--noflush"], input=rules, text=True, check=True)
server = socket.create_server(("203.0.113.20", 80))

def connect():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("203.0.113.20", 80))
    return sock

def shown(reader):
    while True:
        assert select.select([reader.socket], [], [], 30)[0]
        if (packet := reader.receive()) is not None:
            return packet

def connected(sock):
    assert select.select([], [sock], [], 30)[1]
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
"""


def play(code):
    argv = ["unshare", "--net", sys.executable, "-c", _BEGIN + code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_comes_before_anybody_reads_waits():
    assert play(
        "client = connect()\n"
        "reader = PacketQueue(queue, HOLD_QUEUE)\n"
        "packet = shown(reader)\n"
        "print(tcp_ends(packet.payload) == (client.getsockname(), ('203.0.113.20', 80)), packet.interface)\n"
        "reader.accept(packet.number)\n"
        "print(connected(client))\n"
    ) == ["True", "1", "True"]


def test_what_a_former_reader_left_is_dropped_and_comes_again():
    """The first connect's SYN was shown to a reader that died; the second one's had not been shown to anybody."""
    assert play(
        "first = connect()\n"
        "shown(PacketQueue(queue, HOLD_QUEUE))\n"
        "second = connect()\n"
        "reader, waiting = PacketQueue(queue, HOLD_QUEUE), {sock.getsockname(): sock for sock in (first, second)}\n"
        "while waiting:\n"
        "    packet = shown(reader)\n"
        "    assert packet.number > 1\n"
        "    reader.accept(packet.number)\n"
        "    client = waiting.pop(tcp_ends(packet.payload)[0], None)\n"
        "    if client: print(connected(client))\n"
    ) == ["True", "True"]
