"""What is put into a bundle: the same each time, signed, and no secret."""

import os
import re
import shutil
import subprocess

import pytest

from htcondor_vpn.bundle import unpack
from htcondor_vpn.bundle.build import build, sign
from htcondor_vpn.cli.main import main
from htcondor_vpn.errors import UsageError

#: Private keys, and JSON web tokens.
SECRETS = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{16}|\beyJ[\w-]{16,}\.eyJ[\w-]{16,}\.")


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


def test_the_same_contents_give_the_same_bytes(made, tmp_path):
    build(tmp_path / "again", [], with_python=False)
    assert (tmp_path / "again").read_bytes() == made.read_bytes()


def test_it_is_small(made):
    assert made.stat().st_size < 1e6


def test_a_signature_is_checked(bundle, key, tmp_path):
    mine = bundle._replace(path=tmp_path / "mine")
    shutil.copy(bundle.path, mine.path)
    sign(mine.path, key)
    done = mine.run("--verify", "--key", f"{key}.pub")
    assert (done.returncode, done.stderr) == (0, "")
    assert "signed with" in done.stdout


@pytest.mark.parametrize("what", ["head", "key", "unsigned"])
def test_a_wrong_signature_is_told(bundle, key, tmp_path, what):
    mine = bundle._replace(path=tmp_path / "mine")
    shutil.copy(bundle.path, mine.path)
    if what != "unsigned":
        sign(mine.path, key)
    public = tmp_path / "key.pub"
    public.write_bytes(key.with_name("key.pub").read_bytes())
    if what == "head":
        content = mine.path.read_bytes()
        mine.path.write_bytes(content.replace(b"a bundle: this script", b"a bundle: that script", 1))
    if what == "key":
        other = tmp_path / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True, timeout=30)
        public = tmp_path / "other.pub"
    done = mine.run("--verify", "--key", public)
    assert done.returncode == (66 if what == "unsigned" else 65)
    assert done.stderr.count("\n") == 1


def test_a_signature_can_be_checked_without_running_the_bundle(made, key, tmp_path):
    mine = tmp_path / "mine"
    shutil.copy(made, mine)
    signature = sign(mine, key)
    signers = tmp_path / "signers"
    signers.write_text("builder " + key.with_name("key.pub").read_text())
    argv = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "builder", "-n", "htcondor-vpn-bundle"]
    subprocess.run([*argv, "-s", str(signature)], input=mine.read_bytes(), check=True, capture_output=True, timeout=30)


def test_no_key_no_signature(made, tmp_path):
    mine = tmp_path / "mine"
    shutil.copy(made, mine)
    with pytest.raises(UsageError, match="cannot be signed"):
        sign(mine, tmp_path / "missing")


def test_no_secret_and_no_word_of_the_builder_is_inside(bundle):
    folder = bundle.unpack()
    words = [os.fsencode(str(bundle.path.parent)), os.uname().nodename.encode() + b"\0"]
    if "HOME" in os.environ and os.environ["HOME"] not in ("/", "/root"):
        words.append(os.environ["HOME"].encode() + b"/")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    for path in files:
        content = path.read_bytes()
        assert not SECRETS.search(content), path
        assert not any(word in content for word in words), path
        assert not path.name.endswith((".token", ".pem", ".key", ".sqlite"))


def test_libopenconnect_needs_the_python_that_was_made_for_it(tmp_path):
    with pytest.raises(UsageError, match="--with-python"):
        build(tmp_path / "mine", ["openconnect"], with_python=False)


@pytest.mark.parametrize(("words", "code"), [(["--helpers", "curl"], 64), (["-o", "/missing/file"], 64)])
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, words, code):
    options = {"-o": str(tmp_path / "mine"), "--helpers": "none", **dict([words])}
    assert main(["bundle", *(word for option in options.items() for word in option)]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["bundle", "-o", str(tmp_path / "missing/file"), "--helpers", "none"]) == 64
    assert f"there is no folder {tmp_path}/missing for the bundle: mkdir -p " in capsys.readouterr().err


class TestUnpack:
    def test_the_loader_is_named_by_its_place(self, tmp_path):
        new, final = tmp_path / "new", tmp_path / "final"
        (new / "bin").mkdir(parents=True)
        (new / "bin/program").write_bytes(b"before" + unpack.PLACEHOLDER + b"\0after")
        assert unpack.main(new, final) == 0
        content = (final / "bin/program").read_bytes()
        assert len(content) == len(unpack.PLACEHOLDER) + 12
        assert content.startswith(b"before" + os.fsencode(final / "lib/loader") + b"\0")
        assert content.endswith(b"\0after")

    def test_a_path_that_is_too_long_is_told(self, tmp_path, capsys):
        new = tmp_path / "new"
        (new / "bin").mkdir(parents=True)
        assert unpack.main(new, tmp_path / ("x" * 240)) == 1
        assert "too long" in capsys.readouterr().err

    def test_programs_that_may_not_be_executed_are_told(self, tmp_path, capsys):
        new = tmp_path / "new"
        (new / "bin").mkdir(parents=True)
        (new / "bin/nft").write_text("#!/bin/sh\n")
        assert unpack.main(new, tmp_path / "final") == 1
        assert "Permission denied" in capsys.readouterr().err

    def test_what_another_pilot_has_put_there_meanwhile_stays(self, tmp_path):
        """What both had found there was not whole; the faster one runs already from what it has mended."""
        news = [tmp_path / name for name in ("first", "second")]
        final = tmp_path / "final"
        for folder in (*news, final):
            (folder / "app").mkdir(parents=True)
        for new in news:
            (new / "app/code").write_text("code")
        (final / "count").write_text("2 10\n")
        assert unpack.main(news[0], final) == 0
        runs = (final / "app/code").stat().st_ino
        assert unpack.main(news[1], final) == 0
        assert (final / "app/code").stat().st_ino == runs
        assert (final / "count").read_text() == "1 4\n"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["final"]
