"""The reference pages under docs/, written from the tables that the code itself uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from htcondor_vpn.knobs import KNOBS, PREFIX
from htcondor_vpn.publish.advertiser.attributes import ATTRIBUTES, JOB_ATTRIBUTES
from htcondor_vpn.publish.advertiser.state_file import STALE_SECONDS
from htcondor_vpn.settings import ENVIRONMENT_PREFIX

_GENERATED = "<!-- Written by `htcondor-vpn config docs {page}`: change the table in the code, not this page. -->\n"


def knobs_page() -> str:
    """Returns docs/knobs.md."""
    rows = [
        (f"`{knob.name}`", knob.type, knob.unit, f"`{knob.default}`" if knob.default else "", knob.text)
        for knob in KNOBS
    ]
    return (
        "# Knobs\n\n"
        + _GENERATED.format(page="knobs")
        + f"""
Every setting is a knob `{PREFIX}…`, written as in HTCondor's own configuration: `NAME = value`, names without regard to
case, later lines and files win, `$(NAME)`, `$(NAME:default)` and `$ENV(NAME)` are replaced, an empty value means the
default.

The knobs are read from the files given by `--config`; without any, from those in the environment variable
`HTCONDOR_VPN_CONFIG` (separated by colons); without that, from HTCondor's own configuration: `CONDOR_CONFIG`, its
`LOCAL_CONFIG_DIR` and `LOCAL_CONFIG_FILE`. The environment (`{ENVIRONMENT_PREFIX}{PREFIX}… = value`) wins over the
files, and the command line over both. HTCondor's `use` and `include` are not acted upon, and a knob inside `if` is an
error, since only HTCondor can tell whether it counts.

`htcondor-vpn config check` names every problem with file and line, `htcondor-vpn config show` prints the values in
force and where each was set.

"""
        + _table(("knob", "type", "a bare number is in", "default", "what it does"), rows)
        + """
Times may carry `ms`, `s`, `min`, `h` or `d`; rates `kbit/s`, `Mbit/s` or `Gbit/s` (also `kbps`, `Mbps`, `Gbps`). Lists
are separated by commas or spaces. `~` in a path is the home folder.
"""
    )


def attributes_page() -> str:
    """Returns docs/attributes.md."""
    rows, of_jobs = (
        [(f"`{a.name}`", a.type, a.unit, " ".join(a.text.split())) for a in attributes]
        for attributes in (ATTRIBUTES, JOB_ATTRIBUTES)
    )
    return (
        "# Slot attributes\n\n"
        + _GENERATED.format(page="attributes")
        + """
Every slot of a pilot that has `condor_config.d/50-htcondor-vpn.conf` says how its tunnel is:

    condor_status -af Name VpnState VpnGateway VpnUpMbps VpnLatencyMs

"""
        + _table(("attribute", "type", "unit", "meaning"), rows)
        + f"""
An attribute without a value is `undefined`. A change of `VpnState`, `VpnEngine`, `VpnGateway` or `VpnSince` reaches the
collector within about two seconds; the numbers go with the startd's next ordinary update (`UPDATE_INTERVAL`). If the
supervisor dies, `VpnState` becomes `stopped` at once; if it says nothing for {STALE_SECONDS:g} s, `unknown`.

The file's `START` asks for `MY.VpnState =?= "up"`: a slot takes jobs only while its tunnel is up. Jobs may ask for
more:

    requirements = TARGET.VpnDownMbps >= 100 && TARGET.VpnLatencyMs < 50

A slot whose job has a network says what that job has moved ([job-networks.md](job-networks.md) has the attributes of
the job itself):

"""
        + _table(("attribute", "type", "unit", "meaning"), of_jobs)
    )


PAGES = {"knobs": knobs_page, "attributes": attributes_page}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
