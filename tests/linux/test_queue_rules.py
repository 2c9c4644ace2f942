"""The rules that hold packets: what this kernel says to both forms, and that there is no way past the queue."""

import errno
import re
import subprocess
import sys

from htcondor_vpn.addresses import ECHO_QUEUE, HOLD_QUEUE
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.catching.queue_rules import nft_rules, xtables_rules


def in_a_network_of_its_own(argv, stdin=""):
    return subprocess.run(
        ["unshare", "--net", *argv], input=stdin, capture_output=True, text=True, timeout=30, check=False
    )


def test_nft_understands_its_form():
    """A kernel without nft's own `queue` says so at that statement; everything else in the text is right."""
    done = in_a_network_of_its_own([find_program("nft", "nftables"), "--check", "-f", "-"], nft_rules(syns=True))
    if done.returncode:
        assert "syntax error" not in done.stderr
        complaint = r"\S+ Error: Could not process rule: No such file or directory\n\s+meta l4proto tcp queue num \d+\n"
        assert re.match(complaint, done.stderr), done.stderr


def test_xtables_makes_the_same_of_its_own():
    script = (
        f"printf %s '{xtables_rules(4, syns=True)}' | {find_program('iptables-nft-restore')} --noflush && "
        f"printf %s '{xtables_rules(6, syns=True)}' | {find_program('ip6tables-nft-restore')} --noflush && "
        f"{find_program('nft')} -s list ruleset"
    )
    listed = in_a_network_of_its_own(["sh", "-c", script]).stdout
    assert listed.count("tcp flags syn / fin,syn,rst,ack counter jump waiting") == 2
    without_bypass = [f"queue num {number}" for number in (HOLD_QUEUE, ECHO_QUEUE)]
    assert re.findall(r"queue.*", listed) == without_bypass * 2


def test_a_syn_that_nobody_looks_at_goes_nowhere():
    client = (
        "import socket\n"
        "servers = [socket.create_server((host, 80)) for host in ('127.0.0.1', '203.0.113.20')]\n"
        "for host in ('127.0.0.1', '203.0.113.20'):\n"
        "    sock = socket.socket(); sock.settimeout(0.5); print(sock.connect_ex((host, 80)))\n"
    )
    script = (
        "ip link set lo up && ip address add 203.0.113.20/32 dev lo && "
        f"printf %s '{xtables_rules(4, syns=True)}' | {find_program('iptables-nft-restore')} --noflush && exec \"$@\""
    )
    done = in_a_network_of_its_own(["sh", "-c", script, "sh", sys.executable, "-c", client])
    assert done.stdout.split() == ["0", str(errno.EAGAIN)], done.stderr
