"""Text that others wrote, made safe to show, and what they may have meant."""
