"""The names under which a job's traffic appears in its ad, and the way there.

A stock access point keeps only attributes that begin with `Chirp` (CHIRP_DELAYED_UPDATE_PREFIX) and drops the others
without an error, so all are sent; where an admin has widened the prefix, on both sides, the older names appear too:
those of Lark (bytes; all that leaves a pilot is external) and of HTCondor's Docker universe (units of 10^6 bytes).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from htcondor_vpn.condor.chirp import ChirpConfig, ChirpError, Value, set_attributes_delayed
from htcondor_vpn.jobnet.wiring import Totals

CHIRP_SECONDS = 3.0


def attributes(totals: Totals) -> Mapping[str, Value]:
    """The job attributes that tell `totals`, seen from the job: in is what it received.

    Each packet's headers are in the bytes; a packet may be a segment of up to 64 KB that was never cut into frames.
    """
    return {
        "ChirpNetworkBytesIn": totals.received_bytes,
        "ChirpNetworkBytesOut": totals.sent_bytes,
        "ChirpNetworkPacketsIn": totals.received_packets,
        "ChirpNetworkPacketsOut": totals.sent_packets,
        "NetworkIncomingExternal": totals.received_bytes,
        "NetworkOutgoingExternal": totals.sent_bytes,
        "NetworkInputMb": totals.received_bytes / 1e6,
        "NetworkOutputMb": totals.sent_bytes / 1e6,
    }


async def publish(config: ChirpConfig, totals: Totals) -> None:
    """Gives `totals` to the job's starter; raises `ChirpError`, also when it takes longer than `CHIRP_SECONDS`."""
    try:
        await asyncio.wait_for(set_attributes_delayed(config, attributes(totals)), CHIRP_SECONDS)
    except asyncio.TimeoutError:
        raise ChirpError(0, f"the starter took more than {CHIRP_SECONDS:g} s to answer by chirp") from None
