"""Bytes of weights, caches and start-up, on the GPU and in RAM."""
