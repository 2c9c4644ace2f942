"""What node and gateway say to each other: TLS 1.3, HTTP/1.1 in it, and the relay of one flow's bytes."""
