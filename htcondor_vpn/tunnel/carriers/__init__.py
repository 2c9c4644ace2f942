"""The ways out: gateways, proxies, ssh, packet VPNs and plain sockets, each a `Carrier`."""
