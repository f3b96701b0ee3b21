"""Starting engines: the process that becomes one, shims, and what starting engines have reserved."""
