"""What starts of engines on this machine took beside their plans, and what later plans make of it."""
