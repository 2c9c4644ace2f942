"""How the inner namespace's traffic reaches a gateway: catchers, engines, health."""
