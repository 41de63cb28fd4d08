"""These tests need what `innerloop[cli]` installs; without it they are not collected."""

from importlib.util import find_spec

NEEDED = ("typer", "rich", "pandas", "scipy", "matplotlib")
collect_ignore_glob = [] if all(find_spec(name) for name in NEEDED) else ["test_*.py"]
