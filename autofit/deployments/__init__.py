"""Files that commands of engines are written in: scripts, units, manifests. Read, never run."""
