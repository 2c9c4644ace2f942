"""What a job may reach and what it moves, as the kernel knows it: nftables on the broker's side of the jobs' links."""
