"""`htcondor-vpn bundle`: one file with everything that a bare node needs."""
