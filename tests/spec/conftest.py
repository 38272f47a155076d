from __future__ import annotations

import pytest


@pytest.fixture
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what `spec_components` registers: messages list the names that there are."""
    monkeypatch.setattr("dino_lab.registry.discovery._built_in", lambda kind: [])
    monkeypatch.setattr("dino_lab.registry.discovery._installed", lambda kind: [])
