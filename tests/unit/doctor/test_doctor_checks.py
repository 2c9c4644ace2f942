"""Single checks, in surroundings that are made for them."""

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from htcondor_vpn.doctor import kernel, namespaces, network, shared, surroundings, trying
from htcondor_vpn.doctor.finding import Outcome
from htcondor_vpn.errors import CatcherUnavailable


@pytest.mark.parametrize(
    ("release", "outcome"),
    [("5.4.0", "good"), ("6.18.44-x", "good"), ("5.3.18-150300", "bad"), ("4.18.0-553.el8", "bad"), ("odd", "bad")],
)
def test_the_kernels_version(release, outcome):
    assert kernel.version(release).outcome.value == outcome


@pytest.mark.parametrize(("most", "outcome"), [(15000, "good"), (10, "limited"), (0, "bad")])
def test_how_many_namespaces_there_may_be(tmp_path, most, outcome):
    (tmp_path / "max_user_namespaces").write_text("60000\n")
    (tmp_path / "max_net_namespaces").write_text(f"{most}\n")
    found = namespaces.limits(tmp_path)
    assert found.outcome.value == outcome
    assert (found.ask == "sysctl user.max_net_namespaces=10000") == (outcome == "limited")


@pytest.fixture
def confined(tmp_path):
    """Writes what /proc and /sys say of this process, and returns the finding of it."""

    def confined(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return namespaces.security_modules(tmp_path / "proc", tmp_path / "sys")

    return confined


def test_nothing_confines(confined):
    found = confined(proc__self__attr__apparmor__current="unconfined\n", proc__self__status="Name:\tx\nSeccomp:\t0\n")
    assert found.outcome is Outcome.GOOD


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"proc__self__attr__apparmor__current": "slurmd (enforce)\n"}, "slurmd (enforce)"),
        ({"proc__sys__kernel__apparmor_restrict_unprivileged_userns": "1\n"}, "AppArmor restricts"),
        ({"sys__fs__selinux__enforce": "1"}, "SELinux"),
        ({"proc__self__status": "Name:\tx\nSeccomp:\t2\n"}, "seccomp filter"),
    ],
)
def test_what_confines_is_told(confined, files, said):
    found = confined(**files)
    assert found.outcome is Outcome.LIMITED
    assert said in found.said


def test_the_folder_for_files(tmp_path, monkeypatch):
    assert surroundings.scratch_folder(tmp_path).outcome is Outcome.GOOD
    assert surroundings.scratch_folder(tmp_path / "missing").outcome is Outcome.BAD
    real = os.statvfs(tmp_path)
    for change, said in (
        ({"f_bavail": 1}, "free"),
        ({"f_flag": os.ST_NOEXEC}, "noexec"),
        ({"f_flag": os.ST_RDONLY}, "wri"),
    ):
        fields = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
        monkeypatch.setattr(os, "statvfs", lambda _, now={**fields, **change}: type("Status", (), now))
        found = surroundings.scratch_folder(tmp_path)
        assert found.outcome is Outcome.BAD
        assert said in found.said
        assert found.ask


def test_limits(monkeypatch):
    few = {resource.RLIMIT_NOFILE: (256, 256), resource.RLIMIT_NPROC: (-1, -1), resource.RLIMIT_AS: (10**9, 10**9)}
    monkeypatch.setattr(resource, "getrlimit", few.get)
    found = surroundings.limits()
    assert found.outcome is Outcome.LIMITED
    assert "256 descriptors, 1000 MB of address space" in found.said


def test_a_device_that_is_missing(tmp_path):
    assert surroundings.fuse(tmp_path / "fuse").outcome is Outcome.LIMITED
    (tmp_path / "fuse").touch()
    assert surroundings.fuse(tmp_path / "fuse").outcome is Outcome.GOOD


@pytest.mark.parametrize("found", [True, False])
def test_apptainer(tmp_path, monkeypatch, found):
    monkeypatch.setenv("PATH", str(tmp_path))
    if found:
        (tmp_path / "apptainer").write_text("#!/bin/sh\necho apptainer version 1.3\n")
        (tmp_path / "apptainer").chmod(0o755)
    said = surroundings.apptainer().said
    assert ("apptainer version 1.3; inside" in said) == found


class TestTrying:
    def test_what_is_said_comes_back(self):
        assert trying.try_in_child(lambda: "x" * 5000) == "x" * 5000

    def test_an_error_comes_back_with_its_remedy(self):
        def probe():
            raise CatcherUnavailable("no nft", "install it")

        with pytest.raises(trying.Refused) as caught:
            trying.try_in_child(probe)
        assert (caught.value.cause, caught.value.remedy) == ("no nft", "install it")

    def test_any_other_error_comes_back(self):
        with pytest.raises(trying.Refused, match="PermissionError: Permission denied"):
            trying.try_in_child(lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))

    def test_a_death_is_told(self):
        with pytest.raises(trying.Refused, match="without a word"):
            trying.try_in_child(lambda: os._exit(9))

    def test_no_process_is_left(self):
        child = int(trying.try_in_child(lambda: str(os.getpid())))
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)

    def test_what_hangs_is_ended(self, monkeypatch):
        monkeypatch.setattr(trying, "_SECONDS", 0.2)
        with pytest.raises(trying.Refused):
            trying.try_in_child(lambda: str(threading.Event().wait(60)))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=x",
    ]
    subprocess.run(
        [*argv, "-keyout", str(path), "-out", str(path) + ".crt"], check=True, capture_output=True, timeout=30
    )
    return path


@contextlib.contextmanager
def server(serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                with client:
                    serve(client)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(("version", "outcome"), [("TLSv1_3", "good"), ("TLSv1_2", "bad")])
def test_a_tls_server(certificate, version, outcome):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    context.maximum_version = ssl.TLSVersion[version]
    with server(lambda client: context.wrap_socket(client, server_side=True).close()) as port:
        found = network.tcp("127.0.0.1", port)
    assert found.outcome.value == outcome
    assert version.replace("_", ".") in found.said


def test_a_server_of_something_else():
    with server(lambda client: client.send(b"SSH-2.0-x\r\n")) as port:
        found = network.tcp("127.0.0.1", port)
    assert found.outcome is Outcome.BAD
    assert "does not speak TLS" in found.said
    assert network.tcp("127.0.0.1", port).said == "it cannot be reached: Connection refused"


def test_a_name_that_does_not_resolve(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "does not resolve" in network.tcp("gateway.invalid", 443).said
    assert "does not resolve" in network.udp("gateway.invalid", 443).said


def test_datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert network.udp("127.0.0.1", port, 0.1).outcome is Outcome.UNKNOWN
    assert network.udp("127.0.0.1", port).said == "datagrams are refused: Connection refused"


@pytest.mark.parametrize(
    ("script", "outcome", "said"),
    [
        ("exit 0", "good", "without a password"),
        ("echo Permission denied >&2; exit 255", "bad", "Permission denied"),
        ("echo no shell >&2; exit 1", "limited", "no shell"),
    ],
)
def test_ssh(tmp_path, monkeypatch, script, outcome, said):
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/argv\n{script}\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = network.ssh("me@login")
    assert (found.outcome.value, said in found.said) == (outcome, True)
    assert "BatchMode=yes" in (tmp_path / "argv").read_text()


class TestShared:
    @pytest.fixture
    def mounts(self, tmp_path):
        def mounts(kind, options="rw"):
            path = tmp_path / "mounts"
            path.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path} {kind} {options} 0 0\n")
            return path

        return mounts

    def test_an_answer_is_timed(self, tmp_path, mounts):
        folder = tmp_path / "shared"
        folder.mkdir()
        thread = threading.Thread(target=shared.echo, args=(folder, 3.0))
        thread.start()
        found = shared.visibility(folder, 10, mounts("nfs4"))
        thread.join()
        assert found.outcome is Outcome.GOOD
        assert "it is nfs4; a file and the answer to it took" in found.said
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        ("kind", "options", "outcome", "said"),
        [
            ("nfs4", "rw,vers=4.2", "unknown", "after 60 s"),
            ("nfs", "rw,acdirmax=5", "unknown", "after 5 s"),
            ("nfs4", "rw,noac", "unknown", "at once"),
            ("lustre", "rw", "unknown", "at once"),
            ("ext4", "rw", "bad", "no other host"),
        ],
    )
    def test_without_an_answer_the_mount_tells(self, tmp_path, mounts, kind, options, outcome, said):
        found = shared.visibility(tmp_path, 0, mounts(kind, options))
        assert (found.outcome.value, said in found.said) == (outcome, True), found.said
        assert [path.name for path in tmp_path.iterdir()] == ["mounts"]

    @pytest.mark.parametrize("name", [b"m\xc3\xbcller", b"no text \xff", b"a blank"])
    def test_a_mount_of_any_name(self, tmp_path, name):
        point = os.fsencode(tmp_path) + b"/" + name
        mounts = tmp_path / "mounts"
        written = point.replace(b" ", rb"\040")
        mounts.write_bytes(b"none / ext4 rw 0 0\nserver:/x " + written + b" nfs4 rw,vers=4.2 0 0\n")
        assert shared.file_system(Path(os.fsdecode(point)), mounts) == ("nfs4", "rw,vers=4.2")

    def test_a_folder_that_cannot_be_written(self, tmp_path, mounts):
        assert shared.visibility(tmp_path / "missing", 0, mounts("nfs4")).outcome is Outcome.BAD

    def test_an_answer_that_came_too_late_is_removed(self, tmp_path):
        question = tmp_path / f"{shared._PREFIX}1-question"
        question.touch()
        timer = threading.Timer(0.3, question.unlink)
        timer.start()
        assert shared.echo(tmp_path, 1.0) == 1
        assert not list(tmp_path.iterdir())
