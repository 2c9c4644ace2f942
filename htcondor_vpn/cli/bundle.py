"""`htcondor-vpn bundle -o FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from htcondor_vpn.bundle.build import build, sign
from htcondor_vpn.bundle.contents import HELPERS
from htcondor_vpn.cli.output import say
from htcondor_vpn.errors import UsageError, VpnError

_DEFAULT = "nft,iptables"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="the bundle to write")
    parser.add_argument("--with-python", action="store_true", help="take along the Python that runs this")
    parser.add_argument(
        "--helpers", default=_DEFAULT, metavar="LIST",
        help=f"programs to take along, of {', '.join(HELPERS)}, or none (default: {_DEFAULT})",
    )  # fmt: skip
    parser.add_argument("--sign", type=Path, metavar="KEY", help="a private key of ssh's: sign it, into FILE.sig")


def run(args: argparse.Namespace) -> int:
    helpers = [] if args.helpers == "none" else [word.strip() for word in args.helpers.split(",")]
    if unknown := set(helpers) - set(HELPERS):
        raise UsageError(f"{', '.join(sorted(unknown))}: no such helper", f"choose from {', '.join(HELPERS)}, or none")
    if not args.output.absolute().parent.is_dir():  # before it takes its time
        raise UsageError(f"there is no folder {args.output.parent} for the bundle", f"mkdir -p {args.output.parent}")
    made = build(args.output, helpers, args.with_python)
    signature = _signed(args.output, args.sign) if args.sign else None
    say(f"{args.output}: {made.size_bytes / 1e6:.1f} MB, {made.contents}")
    say(f"sha256 of what is packed: {made.digest}")
    if signature is not None:
        say(f"signed: {signature}")
    return 0


def _signed(bundle: Path, key: Path) -> Path:
    """Signs the bundle, or removes it: nobody shall ship one unsigned that was to be signed. Raises `VpnError`."""
    try:
        return sign(bundle, key)
    except VpnError:
        bundle.unlink(missing_ok=True)
        raise
