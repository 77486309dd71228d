"""The shared core: everything that the tasks have in common, and nothing specific to one task."""

from common.requirements_check import require_environment

require_environment()
