"""Takes libbpf into the wheel, if `bpf/libbpf/build.sh` has made one; see pyproject.toml.

Without it the wheel fits every machine, and the system's library is loaded.  With it the wheel's
tag names the oldest C library that has all the symbols it asks for.

Source: PEP 600 (manylinux_x_y); packaging.python.org, platform compatibility tags.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INTO: Final = "x0tta6bl4/edge/kernel/"
FILES: Final = ("libbpf.so.1", "libbpf.LICENSE")


class LibbpfHook(BuildHookInterface[Any]):
    """Hatchling's hook."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel is built; an editable one is left as it is."""
        built = Path(self.root, "build", "libbpf")
        if version == "editable" or not all((built / name).is_file() for name in FILES):
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform((built / FILES[0]).read_bytes())}"
        build_data["force_include"] |= {str(built / name): INTO + name for name in FILES}


def platform(library: bytes) -> str:
    """Tag of a library by the versions of the symbols it asks for."""
    needed = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", library)]
    machine = os.uname().machine
    return f"manylinux_2_{max(needed)}_{machine}" if needed else f"linux_{machine}"
