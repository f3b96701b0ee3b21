"""Which tensors llama.cpp asks a file for; generated from the engine's source, one module for each of its."""
