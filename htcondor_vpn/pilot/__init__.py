"""`htcondor-vpn run`: the processes of a pilot, and the command inside."""
