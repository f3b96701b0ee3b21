"""autofit's own options: what they are, where their values come from, and what they ask of a backend."""
