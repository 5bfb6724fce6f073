"""Programs in the kernel for a whole module of tests, in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.kernel.kernel_world import World
from tests.edge.kernel.space import Space
from x0tta6bl4.edge.kernel.libbpf import KernelRefused


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Loaded once per module; the thread is inside its namespace meanwhile."""
    space = Space()
    pins: Path = tmp_path_factory.mktemp("pins")
    with space:
        try:
            world = World(pins)
        except KernelRefused as error:
            pytest.skip(f"no programs in this kernel: {error}")
        yield world
        world.programs.remove()
    space.close()


@pytest.fixture
def world(loaded: World) -> World:
    """Empty maps."""
    loaded.clear()
    return loaded
