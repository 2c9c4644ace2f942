"""Builds the container images of docs/containers with a real Apptainer, and has a pilot in the one use the other.

For root, who alone can make a root file system; takes some minutes. It is a check of its own, `make containers`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from htcondor_vpn.errors import UsageError, VpnError
from htcondor_vpn.linux.programs import ProgramFailed, run_program
from htcondor_vpn.testbed.apptainer import USER, root_folder, run_in
from htcondor_vpn.testbed.debian_sources import main_mirror
from htcondor_vpn.testbed.set_up_command import exit_code, say

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPES = CHECKOUT / "docs" / "containers"
IMAGES = ("gateway", "node")
_BUILD_SECONDS, _TRIAL_SECONDS, _WHEELS_SECONDS = 900.0, 300.0, 300.0

#: Runs as an ordinary user in the builder's file system, with both images in its home folder.
TRIAL = """
import os, subprocess, sys
os.chdir(os.environ["HOME"])
address, port, web_port = "203.0.113.1", 8443, 8000
web = subprocess.Popen([sys.executable, "-m", "http.server", str(web_port), "--bind", address])
gateway = ["apptainer", "--silent", "run", "gateway.sif"]
subprocess.run([*gateway, "token", "add", "pilot", "-o", "pilot.token", "--dir", "gateway"], check=True, timeout=120)
serving = subprocess.Popen(
    [*gateway, "--dir", "gateway", "--listen", f"{address}:{port}", "--allow", f"{address}/32"],
    stdout=subprocess.PIPE, text=True,
)
if not any(line == "ready\\n" for line in serving.stdout):
    sys.exit("the gateway does not start")
fetch = f"import urllib.request; print(urllib.request.urlopen('http://{address}:{web_port}/').status)"
pilot = subprocess.run(
    ["apptainer", "--silent", "run", "node.sif", "--gateway", f"{address}:{port}", "--pin-file", "gateway/gateway.pin",
     "--token-file", "pilot.token", "--", "python3", "-c", fetch],
    stdout=subprocess.PIPE, text=True, timeout=120,
)
sys.exit(0 if (pilot.returncode, pilot.stdout) == (0, "200\\n") else f"the pilot failed: {pilot}")
"""


def build_and_try() -> None:
    """Leaves the images in `.cache/apptainer`; raises `VpnError` if one cannot be built, or they do not work."""
    if os.geteuid() != 0:
        raise UsageError("images are built from a root file system", "start `make containers` as root")
    root = root_folder()
    home = root / "home" / USER
    with tempfile.TemporaryDirectory(prefix="build-", dir=root) as name:
        folder = Path(name)
        folder.chmod(0o755)
        say("collecting the Python packages")
        source = folder / "source"  # pip builds in the source's own folder, which may be another's
        shutil.copytree(CHECKOUT / "htcondor_vpn", source / "htcondor_vpn")
        for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(CHECKOUT / file, source)
        wheels = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder / "wheels")]
        try:
            run_program([*wheels, f"{source}[gateway]"], timeout_seconds=_WHEELS_SECONDS)
        except ProgramFailed as error:
            raise VpnError(f"the Python packages cannot be had: {error}", "see how pip is configured") from error
        for image in IMAGES:
            shutil.copy(RECIPES / f"{image}.def", folder)
            say(f"building {image}.sif")
            code = run_in(root, _build_argv(folder.name, image), timeout_seconds=_BUILD_SECONDS)
            _check(f"{image}.sif cannot be built", code)
            shutil.copy(folder / f"{image}.sif", root.parent)
            shutil.copy(folder / f"{image}.sif", home)
        say("a pilot in the one uses the other")
        code = run_in(root, ["python3", "-c", TRIAL], timeout_seconds=_TRIAL_SECONDS, as_user=True, network=False)
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _check("the images do not work together", code)
    say(f"both images work, and are in {root.parent}")


def _build_argv(folder: str, image: str) -> list[str]:
    arguments = ["--build-arg", f"mirror={main_mirror()}", "--build-arg", f"wheels=/{folder}/wheels"]
    return ["apptainer", "build", *arguments, f"/{folder}/{image}.sif", f"/{folder}/{image}.def"]


def _check(problem: str, code: int) -> None:
    if code != 0:
        raise VpnError(f"{problem}: code {code}", "see what it said above")


if __name__ == "__main__":
    sys.exit(exit_code(build_and_try))
