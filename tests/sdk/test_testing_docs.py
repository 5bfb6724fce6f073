"""What docs/testing-with-workload-api.md shows does run, as a project of somebody else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from x0tta6bl4.sdk.testing import faults
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

PAGE = Path(__file__).parents[2] / "docs" / "testing-with-workload-api.md"


def test_every_code_block_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.read_text().count("```python")
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sum(code.count("def test_") for _, code in blocks)
    assert f"{tests} passed" in done.stdout


def test_every_name_in_the_tables_exists() -> None:
    names = re.findall(r"`(\w+)[(`]", "\n".join(re.findall(r"^\|.*", PAGE.read_text(), re.M)))
    known = {*dir(WorkloadApi), *dir(faults), *Fault.__struct_fields__, "Fault", "call", "fault"}
    assert set(names) <= known, set(names) - known
