"""What would fit, and what to buy: coarse bounds over all hardware, and exact plans for what is shown."""
