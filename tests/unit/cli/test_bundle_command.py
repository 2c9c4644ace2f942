"""`htcondor-vpn bundle`: what is left when it fails."""

from __future__ import annotations

from htcondor_vpn.cli.main import main


def test_a_bundle_that_cannot_be_signed_is_not_left_unsigned(tmp_path, capsys):
    argv = ["bundle", "-o", str(tmp_path / "bundle"), "--helpers", "none", "--sign", str(tmp_path / "key")]
    assert main(argv) == 64
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), "cannot be signed" in captured.err) == ("", 1, True)
    assert list(tmp_path.iterdir()) == []
