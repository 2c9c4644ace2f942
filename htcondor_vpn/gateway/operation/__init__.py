"""A gateway's processes: their start, their limits, their ledger and their end."""
