"""What a gateway does for one connection of a pilot."""
