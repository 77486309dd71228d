"""The shared core: everything that the tasks have in common, and nothing that is one task's own."""
