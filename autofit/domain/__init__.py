"""Frozen values that every stage shares. No I/O, no clock, no environment."""
