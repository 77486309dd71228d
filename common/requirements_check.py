"""Whether this Python can run the project; imported before anything else, so that what is missing is one line.

It must itself run on old Pythons without any package.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

PYTHON = ((3, 10), (3, 14))  # from, to before
NEEDED = (
    *("numpy", "pydantic", "scipy", "sklearn", "soundfile", "soxr", "torch", "tqdm", "yaml", "filelock", "jinja2"),
    *("matplotlib", "numba", "pandas", "plotly", "requests", "safetensors", "threadpoolctl"),
)


def require_environment() -> None:
    """End with status 2 and one line, or in a notebook raise ImportError, if Python or packages are not as needed."""
    problem = find_problem(sys.version_info[:2], [name for name in NEEDED if find_spec(name) is None])
    if problem is None:
        return
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
        raise ImportError(problem)
    print("error: " + problem, file=sys.stderr)
    raise SystemExit(2)


def find_problem(version: tuple[int, ...], missing: list[str]) -> str | None:
    """What keeps this Python from running the project, with what to do; None if nothing does."""
    own = "{}.{} ({})".format(*version[:2], sys.executable)
    activate = "source .venv/bin/activate (make install creates it)"
    if not PYTHON[0] <= version < PYTHON[1]:
        return f"Python 3.10 to 3.13 is needed, this is {own}; activate the project's environment: {activate}"
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more packages" if len(missing) > 3 else "")
        return f"Python {own} lacks {names}; activate the project's environment: {activate}"
    return None
