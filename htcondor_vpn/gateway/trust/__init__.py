"""Who may use a gateway, and by what the gateway itself is known."""
