"""`python -m tests.sdk.attack`: the whole set at every door, and what came of it."""

from __future__ import annotations

import sys

from tests.sdk.attack.bearers import BEARERS, ODD
from tests.sdk.attack.carry import Count, carry
from tests.sdk.attack.certificates import CASES, UNUSUAL
from tests.sdk.attack.doors import DOORS
from tests.sdk.attack.gates import GATES, Court, carry_tokens
from tests.sdk.attack.world import World


def _say(name: str, count: Count) -> None:
    sys.stdout.write(
        f"  {name:36} {count.refused:4} refused, {count.twins:4} twins and"
        f" {count.unusual:3} unusual ones accepted\n"
    )
    sys.stdout.write("".join(f"    WRONG {line}\n" for line in count.wrong))
    sys.stdout.flush()


def main() -> int:
    """Carry everything out; 1 if anything is not as it must be."""
    counts: list[Count] = []
    sys.stdout.write(
        f"{len(CASES)} certificates that are wrong, {len(UNUSUAL)} that are unusual,"
        f" at {len(DOORS)} doors of the SDK:\n"
    )
    with World() as world:
        for door in DOORS:
            counts.append(carry(world, door))
            _say(f"{door} ({door.backend})", counts[-1])
    sys.stdout.write(f"{len(BEARERS)} tokens that are wrong, {len(ODD)} that are unusual:\n")
    with Court() as court:
        for gate in GATES:
            counts.append(carry_tokens(court, gate))
            _say(gate, counts[-1])
    wrong = sum(len(count.wrong) for count in counts)
    sys.stdout.write(
        f"at the SDK: {sum(count.refused for count in counts)} attacks,"
        f" {sum(count.twins + count.unusual for count in counts)} valid peers and tokens;"
        f" {wrong} not as it must be\n"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
