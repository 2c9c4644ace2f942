"""`htcondor-vpn doctor`: what a node allows, found by trying, and what follows from it. It leaves nothing behind."""
