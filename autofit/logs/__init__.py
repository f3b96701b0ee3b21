"""Reading what an engine prints while it runs: bytes to lines, lines to a frozen `Observed`."""
