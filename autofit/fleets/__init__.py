"""Several models on several machines: what is asked, which of them run together, where each goes, and the proof."""
