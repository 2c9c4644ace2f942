"""The engine's worker processes, which relay flows, and what it and they tell each other."""
