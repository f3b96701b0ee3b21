"""llama.cpp: placement, memory model, command line, engine versions."""
