"""Gives HTCondor pilots on nodes without outside connectivity a network, and every job a network of its own."""
