"""The attributes of slots: their names, types and units, and values as ClassAd literals."""

from __future__ import annotations

from typing import Any, NamedTuple

from htcondor_vpn.publish.advertiser.checks import Fields


class Attribute(NamedTuple):
    """One slot attribute: its name, the field of state.json it comes from, ClassAd type, unit and text."""

    name: str
    field: str
    type: str
    unit: str
    text: str


ATTRIBUTES = (
    Attribute(
        "VpnState",
        "state",
        "string",
        "",
        """`up` if the tunnel carries traffic, else `starting`, `connecting`, `down`, `stopping`, `stopped` or `failed`;
        `unknown` if nobody keeps state.json any more or it cannot be read; `absent` if HTCondor was not started by
        `htcondor-vpn run`.""",
    ),
    Attribute("VpnEngine", "engine", "string", "", "How traffic gets to the gateway, for example `stream`."),
    Attribute("VpnGateway", "gateway", "string", "", "The gateway in use, HOST:PORT."),
    Attribute("VpnUpMbps", "up_mbps", "real", "Mbit/s", "Bandwidth towards the gateway; only while the tunnel is up."),
    Attribute("VpnDownMbps", "down_mbps", "real", "Mbit/s", "Bandwidth towards the node; only while the tunnel is up."),
    Attribute(
        "VpnLatencyMs",
        "latency_ms",
        "real",
        "ms",
        "Time of the last probe to the gateway and back; only while the tunnel is up.",
    ),
    Attribute("VpnBytesIn", "bytes_in", "integer", "bytes", "Payload received from the gateway since the pilot began."),
    Attribute("VpnBytesOut", "bytes_out", "integer", "bytes", "Payload sent to the gateway since the pilot began."),
    Attribute("VpnSince", "since", "integer", "unix s", "When the present state began."),
)

#: What a slot says of the job in it, by the fields of `Observer.jobs`; undefined without a job that has a network.
JOB_ATTRIBUTES = (
    Attribute("VpnJobBytesIn", "bytes_in", "integer", "bytes", "What the slot's job has received so far."),
    Attribute("VpnJobBytesOut", "bytes_out", "integer", "bytes", "What the slot's job has sent so far."),
    Attribute("VpnJobConnections", "connections", "integer", "", "Connections that the slot's job has had."),
    Attribute("VpnJobPeakMbpsIn", "peak_in_mbps", "real", "Mbit/s", "Its highest rate of receiving, over 5 s."),
    Attribute("VpnJobPeakMbpsOut", "peak_out_mbps", "real", "Mbit/s", "Its highest rate of sending, over 5 s."),
)

#: These have no meaning while the tunnel is not up.
ONLY_WHILE_UP = ("up_mbps", "down_mbps", "latency_ms")


def advertised(fields: Fields) -> Fields:
    """Returns each attribute's value, None where there is none to tell."""
    up = fields["state"] == "up"
    return {
        attribute.name: fields.get(attribute.field) if up or attribute.field not in ONLY_WHILE_UP else None
        for attribute in ATTRIBUTES
    }


def literal(type_: str, value: Any) -> str:
    """Writes a checked value as a ClassAd literal; none, or an empty string, is `undefined`."""
    if value is None or value == "":
        return "undefined"
    if type_ == "string":
        return f'"{value}"'
    return f"{value:.3f}" if type_ == "real" else f"{value:.0f}"
