"""docs/job-policy.md: its example is the file beside it, and its commands print what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from htcondor_vpn.cli.main import main
from htcondor_vpn.jobnet.policy.refusal import SubCode
from htcondor_vpn.jobnet.policy.source import SECTIONS

pytest.importorskip("classad2", reason="a policy's expressions need HTCondor's Python bindings")

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLE = DOCS / "examples" / "site.policy"
PAGE = (DOCS / "job-policy.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```\n(\[(?s:.*?))```", PAGE, re.MULTILINE))
def test_excerpts_are_of_the_example(block: str) -> None:
    example = EXAMPLE.read_text()
    for part in block.split("\n\n"):
        assert part.strip() in example


@pytest.mark.parametrize(("asked", "code"), [("300", 0), ("500", 3)])
def test_explain_prints_what_the_page_says(
    asked: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = re.search(
        r"\$ cat job.ad\n((?s:.*?))\$ cat slot.ad\n((?s:.*?))\$ htcondor-vpn (job policy explain .*)\n((?s:.*?))```",
        PAGE,
    )
    assert console is not None
    job, slot, command, printed = console.groups()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTCONDOR_VPN_CONFIG", "/dev/null")
    Path("job.ad").write_text(job.replace("VpnUpMbps = 300", f"VpnUpMbps = {asked}"))
    Path("slot.ad").write_text(slot)
    Path("site.policy").write_text(EXAMPLE.read_text())
    assert main(command.replace("/etc/condor/", "").split()) == code
    out = capsys.readouterr().out.replace(f"{tmp_path}/", "/etc/condor/")
    if code == 0:
        assert out == printed
    else:
        assert f"```\n{out.splitlines()[-1]}\n```" in PAGE


def test_every_key_and_every_code_is_on_the_page() -> None:
    for key in {key for keys in SECTIONS.values() for key in keys}:
        assert f"`{key}" in PAGE, key
    others = {SubCode.NOT_EXECUTABLE, SubCode.BROKER_UNREACHABLE, SubCode.TUNNEL_NOT_UP}
    pages = PAGE + (DOCS / "job-networks.md").read_text()
    for code in SubCode:
        assert re.search(
            rf"^\| (\d+, )?{int(code)}(, \d+)? \|", pages if code in others or 30 <= code < 300 else PAGE, re.M
        ), code
