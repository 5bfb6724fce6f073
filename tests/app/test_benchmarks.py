"""The page of measurements is made from their results, and says what was not met."""

from __future__ import annotations

import json
from pathlib import Path

from bench import report


def test_the_page_is_current() -> None:
    assert report.PAGE.read_text() == report.page(), "run python -m bench.report"


def test_what_was_not_met_is_said(tmp_path: Path) -> None:
    result = {
        "command": "python -m bench.x",
        "checks": [{"what": "at most 5 %", "good": False, "found": "7 | 8"}],
        "figures": {"gap_ms": {"silent": {"median": 3}}, "seconds": 2},
    }
    (tmp_path / "x.json").write_text(json.dumps(result))
    page = report.page(tmp_path)
    assert "| at most 5 % | 7 \\| 8 | **not met** |" in page
    assert "| gap_ms: silent | median 3 |" in page
    assert "| seconds | 2 |" in page


def test_tables_stand_before_the_figures_and_what_is_raw_is_left_out(tmp_path: Path) -> None:
    table = {"columns": ["shape", "silent"], "rows": [["ring", "3/4 (10)"], ["grid", None]]}
    result = {"figures": {"seconds": 2, "outage in ms": table, "raw": {"ring": {"all": [77]}}}}
    (tmp_path / "x.json").write_text(json.dumps(result))
    page = report.page(tmp_path)
    assert "Outage in ms:\n\n| shape | silent |\n|---|---|\n| ring | 3/4 (10) |\n" in page
    assert page.index("| grid |  |") < page.index("| seconds | 2 |")
    assert "77" not in page
