"""Tests of components: one call checks whether a component keeps its contract.

from dino_lab.testing import check_component

def test_huber() -> None:
    check_component("loss", "huber")
"""

from dino_lab.testing.component import check_component, installed

__all__ = ["check_component", "installed"]
