"""`python -m tests.fuzz.search TARGET [options of libFuzzer]`: one search, in this process."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    atheris: Any = importlib.import_module("atheris")  # Only those who search have it.
    with atheris.instrument_imports(include=["x0tta6bl4", "joserfc"]):
        targets: Any = importlib.import_module("tests.fuzz.targets")
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
