"""A gateway's worker: what it can tell of itself in any straits."""

import os

from htcondor_vpn.gateway.operation.worker import OwnMemory


def test_its_memory_is_told_without_a_descriptor_to_spare(without_descriptors):
    """Else it would report no more, and be killed with all its flows as one that is stuck."""
    memory = OwnMemory()
    try:
        with without_descriptors():
            assert memory.bytes() > os.sysconf("SC_PAGESIZE")
    finally:
        memory.close()
