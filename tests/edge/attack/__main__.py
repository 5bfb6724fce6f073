"""`python -m tests.edge.attack [--json]`: carry the attacks out and say what came of them."""

from __future__ import annotations

import argparse
import json
import sys

from tests.edge.attack.cases import statistics
from tests.fakes.ca import FakeCa


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.edge.attack", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    wanted = parser.parse_args(arguments)
    found = statistics(FakeCa())
    failed = bool(
        found["accepted"] or found["refused_for_another_reason"] or found["twins_refused"]
    )
    if wanted.json:
        print(json.dumps(found, indent=2))
        return failed
    print(
        f"attacks tried {found['tried']}, accepted {found['accepted']}; "
        f"valid twins tried {found['twins_tried']}, refused {len(found['twins_refused'])}"
    )
    for line in (*found["refused_for_another_reason"], *found["twins_refused"]):
        print("  WRONG", line)
    for reason, count in found["reasons"].items():
        print(f"  {count:5}  {reason}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
