"""Whether this Python can run the project; imported before anything else, so that what is missing is one line.

It must itself run on old Pythons (from 3.6 on, hence the quoted types) without any package.
"""

import sys
from importlib.util import find_spec

# The one place that says so: `make` asks this file, and a test compares pyproject.toml and the manual with it.
PYTHON = ((3, 11), (3, 14))  # the first and the last
NAMED = " to ".join("{}.{}".format(*version) for version in PYTHON)
NEEDED = (
    *(
        "numpy",
        "pydantic",
        "scipy",
        "sklearn",
        "av",
        "soundfile",
        "soxr",
        "torch",
        "tqdm",
        "yaml",
        "filelock",
        "jinja2",
    ),
    *("matplotlib", "numba", "pandas", "requests", "safetensors", "threadpoolctl"),
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


def find_problem(version: "tuple[int, ...]", missing: "list[str]") -> "str | None":
    """What keeps this Python from running the project, with what to do; None if nothing does."""
    running = "{}.{} ({})".format(*version[:2], sys.executable)
    activate = "source .venv/bin/activate (make install creates it)"
    if not PYTHON[0] <= version[:2] <= PYTHON[1]:
        return f"Python {NAMED} is needed, this is {running}; activate the project's environment: {activate}"
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more packages" if len(missing) > 3 else "")
        return f"Python {running} lacks {names}; activate the project's environment: {activate}"
    return None


if __name__ == "__main__":  # what make asks before it creates an environment; the words are its goals
    if find_problem(sys.version_info[:2], []):
        running, goals = sys.version.split()[0], " ".join(sys.argv[1:])
        sys.exit(f"error: Python {NAMED} is needed, this is {running}; try: make PYTHON=python3.12 {goals}")
