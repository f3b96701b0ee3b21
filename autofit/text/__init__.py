"""Text that others wrote, made safe to show and for a shell, and what they may have meant."""
