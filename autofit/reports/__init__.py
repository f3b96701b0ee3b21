"""One small file that lets somebody else replay a command: header, machine, command, figures."""
