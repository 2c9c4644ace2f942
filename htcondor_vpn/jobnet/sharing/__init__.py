"""How jobs share what they may use together: who has which part, and the kernel's queues that hold them to it."""
