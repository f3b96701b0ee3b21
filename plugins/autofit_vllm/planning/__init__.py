"""Which layout, length and batch are proposed, and why."""
