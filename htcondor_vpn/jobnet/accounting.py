"""The names under which a job's traffic appears in its ad, and the way there.

A stock access point keeps only attributes that begin with `Chirp` (CHIRP_DELAYED_UPDATE_PREFIX) and drops the others
without an error, so all are sent; where an admin has widened the prefix, on both sides, the older names appear too:
those of Lark (bytes; internal is what a class `campus` or `internal` counts) and of HTCondor's Docker universe (units
of 10^6 bytes).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from htcondor_vpn.condor.chirp import ChirpConfig, ChirpError, Value, set_attributes_delayed
from htcondor_vpn.jobnet.counting.account import OTHER, Account
from htcondor_vpn.jobnet.counting.table import Moved

CHIRP_SECONDS = 3.0

#: A starter takes no more than 100 attributes; with these there is room for the others.
MOST_CLASSES = 25


def attributes(account: Account) -> Mapping[str, Value]:
    """The job attributes that tell an account, seen from the job: in is what it received.

    Each packet's headers are in the bytes; a packet may be a segment of up to 512 KB that was never cut into frames.
    """
    totals, internal = account.totals, account.internal
    found: dict[str, Value] = {
        "ChirpNetworkBytesIn": totals.received_bytes,
        "ChirpNetworkBytesOut": totals.sent_bytes,
        "ChirpNetworkPacketsIn": totals.received_packets,
        "ChirpNetworkPacketsOut": totals.sent_packets,
        "ChirpNetworkConnections": account.connections,
        "ChirpNetworkMeanMbpsIn": round(account.mean_in_mbps, 3),
        "ChirpNetworkMeanMbpsOut": round(account.mean_out_mbps, 3),
        "ChirpNetworkPeakMbpsIn": round(account.peak_in_mbps, 3),
        "ChirpNetworkPeakMbpsOut": round(account.peak_out_mbps, 3),
        "NetworkIncomingInternal": internal.received_bytes,
        "NetworkOutgoingInternal": internal.sent_bytes,
        "NetworkIncomingExternal": max(totals.received_bytes - internal.received_bytes, 0),
        "NetworkOutgoingExternal": max(totals.sent_bytes - internal.sent_bytes, 0),
        "NetworkInputMb": totals.received_bytes / 1e6,
        "NetworkOutputMb": totals.sent_bytes / 1e6,
    }
    if account.resent_segments is not None:
        found["ChirpNetworkResentSegments"] = account.resent_segments
    if account.class_names:
        classes = account.by_class()
        told = {name: classes[name] for name in account.class_names[:MOST_CLASSES]}
        told[OTHER] = classes[OTHER]
        for name in account.class_names[MOST_CLASSES:]:
            told[OTHER] = told[OTHER].plus(classes[name])
        words: dict[str, Moved] = {}
        for name, moved in told.items():  # `a-b` and `a.b` have the same word
            words[class_word(name)] = words.get(class_word(name), Moved()).plus(moved)
        for word, moved in words.items():
            found[f"ChirpNetwork{word}BytesIn"] = moved.received_bytes
            found[f"ChirpNetwork{word}BytesOut"] = moved.sent_bytes
            found[f"ChirpNetwork{word}Connections"] = moved.connections
    return found


def class_word(name: str) -> str:
    """A class' name as a part of an attribute's: `off-campus` is `OffCampus`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))


async def publish(config: ChirpConfig, account: Account) -> None:
    """Gives `account` to the job's starter; raises `ChirpError`, also when it takes longer than `CHIRP_SECONDS`."""
    try:
        await asyncio.wait_for(set_attributes_delayed(config, attributes(account)), CHIRP_SECONDS)
    except asyncio.TimeoutError:
        raise ChirpError(0, f"the starter took more than {CHIRP_SECONDS:g} s to answer by chirp") from None
