"""Each plugin is tested where it lies, as if it were installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dino_lab.testing import installed


@pytest.fixture(autouse=True, scope="module")
def plugin(request: pytest.FixtureRequest) -> Iterator[None]:
    """The plugin whose tests run, with its entry points."""
    torch.set_num_threads(1)
    with installed(request.path.parents[1]):
        yield
