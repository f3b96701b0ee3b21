"""What every backend needs to plan: accounting of memory, choice of devices, decisions, findings. Pure."""
