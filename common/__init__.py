"""The shared core: everything that the tasks have in common, and nothing specific to one task."""
