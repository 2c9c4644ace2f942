"""Bundles without Python and helpers, as small as they come, and how they are run."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from htcondor_vpn.bundle import contents
from htcondor_vpn.bundle.build import build


class Bundle(NamedTuple):
    """A bundle, and the environment in which it is run: without a word of ours, and with folders of the test's."""

    path: Path
    environment: dict[str, str]

    def argv(self, *words):
        return [str(self.path), *words]

    def run(self, *words, shell=(), **variables):
        environ = {**self.environment, **{name: str(value) for name, value in variables.items()}}
        return subprocess.run(
            [*shell, *self.argv(*words)], env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    def unpack(self, **variables):
        done = self.run("--unpack", **variables)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())


@pytest.fixture(scope="session", autouse=True)
def _unlike_any_other():
    """Bundles of this session are no others', which may lie unpacked in /tmp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "_MAIN", f"{contents._MAIN}# {secrets.token_hex()}\n")
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "htcondor-vpn.bundle"
    build(path, [], with_python=False)
    return path


@pytest.fixture
def bundle(made, tmp_path):
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir(mode=0o700)
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
        "HTVPN_PYTHON": sys.executable, "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    return Bundle(made, environ)
