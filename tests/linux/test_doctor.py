"""`htcondor-vpn doctor` on the simulated node: what it finds is so, and it leaves nothing."""

import json
import os
from pathlib import Path

from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.proxies import LoginNode


def examine(site, *words, prefix=(), **more):
    done = site.node.run([*prefix, *vpn_command("doctor", "--json", *words)], **more)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def outcomes(told):
    return {finding["name"]: finding["outcome"] for finding in told["findings"]}


def seen(site, folder):
    """What an examination could leave behind: links, rules, and files."""
    links = site.node.run(["ip", "-o", "link"], as_root=True).stdout
    rules = site.node.run(["nft", "list", "ruleset"], as_root=True).stdout
    return links, rules, sorted(folder.rglob("*"))


def test_a_node_on_which_all_works(site, gateway, tmp_path):
    before, processes = seen(site, tmp_path), set(site.processes())
    code, told = examine(site, "--gateway", gateway.endpoints[0], env={"TMPDIR": str(tmp_path)})
    assert code == 0, told
    found = outcomes(told)
    for name in ("user namespaces", "mount namespaces", "nested namespaces", "catching connections", "job networks"):
        assert found[name] == "good"
    assert found[f"gateway {gateway.endpoints[0]}, TCP"] == "good"
    assert told["engines"]["stream"]["works"]
    assert seen(site, tmp_path) == before
    assert set(site.processes()) <= processes  # of which some may have been ending


def test_what_is_said_of_the_kernels_wireguard_is_what_ip_finds(site):
    _, told = examine(site)
    made = site.node.run(["unshare", "-U", "-r", "-n", "ip", "link", "add", "wg", "type", "wireguard"], check=False)
    assert outcomes(told)["kernel WireGuard"] == ("good" if made.returncode == 0 else "limited")
    if made.returncode:
        (said,) = (each["said"] for each in told["findings"] if each["name"] == "kernel WireGuard")
        assert made.stderr.rpartition(":")[2].strip(" .\n") in said  # the kernel's words, after RTNETLINK answers:


def test_a_gateway_that_does_not_answer(site):
    code, told = examine(site, "--gateway", "10.1.0.1:9", "--udp", "10.1.0.1:9")
    assert code == 92
    assert told["engines"]["stream"]["lacks"] == ["gateway"]
    assert "TCP port 9" in told["mail"]
    assert outcomes(told)["server 10.1.0.1:9, UDP"] == "bad"


def without(kind):
    """What makes a user namespace in which there can be no more namespaces of a kind."""
    script = f'echo 0 >/proc/sys/user/max_{kind}_namespaces; exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]


def test_a_node_without_user_namespaces(site):
    code, told = examine(site, prefix=without("user"))
    assert code == 92
    assert outcomes(told)["user namespaces"] == "bad"
    assert outcomes(told)["catching connections"] == "unknown"
    assert not any(verdict["works"] for verdict in told["engines"].values())
    assert "sysctl user.max_user_namespaces=10000" in told["mail"]


def test_a_node_without_mounts(site):
    code, told = examine(site, prefix=without("mnt"))
    assert code == 92
    assert outcomes(told)["mount namespaces"] == "bad"
    assert told["engines"]["stream"]["lacks"] == ["mount namespaces", "catching connections"]


def test_a_node_without_nft(site, tmp_path):
    """As a container's mount namespace would hide it."""
    hide = " ".join(
        f"[ ! -e {path} ] || mount --bind /dev/null {path};" for path in ("/usr/sbin/nft", "/usr/local/sbin/nft")
    )
    argv = ["unshare", "--mount", "sh", "-ec", hide + ' exec "$@"', "sh", *vpn_command("doctor", "--json")]
    done = site.node.run(argv, as_root=True)
    assert done.returncode == 92
    told = json.loads(done.stdout)
    assert outcomes(told)["catching connections"] == "bad"
    assert "nftables" in told["mail"]


def test_a_login_node(site, tmp_path):
    with LoginNode(site.dmz, tmp_path / "sshd") as login:
        ssh = tmp_path / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {login.config} "$@"\n')
        ssh.chmod(0o755)
        _, told = examine(site, "--ssh", "login", env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    finding = next(finding for finding in told["findings"] if finding["name"] == "login node login, ssh")
    assert finding["outcome"] in ("good", "limited"), finding


def test_a_shared_folder_answered_by_another_host(site, tmp_path):
    other = site.dmz.start(vpn_command("doctor", "--shared", str(tmp_path), "--echo", "60"), log=Path("/dev/null"))
    try:
        _, told = examine(site, "--shared", str(tmp_path), timeout_seconds=120)
    finally:
        other.kill()
        other.wait()
    finding = next(finding for finding in told["findings"] if finding["name"] == f"shared folder {tmp_path}")
    assert finding["outcome"] == "good", finding
    assert not list(tmp_path.iterdir())


def test_a_report_for_people(site):
    done = site.node.run(vpn_command("doctor"))
    assert done.returncode == 0
    assert "The default way, by the engine `stream`, works here." in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
