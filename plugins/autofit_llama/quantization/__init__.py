"""What `llama-quantize` would make of a model: the type and the bytes of every tensor, before anybody quantizes."""
