"""What is said of an image that cannot be read."""

from __future__ import annotations

REPAIR = "repair or remove it"


class BadImage(Exception):
    """An image that cannot be read; the text says why, and `advice` what to do."""

    def __init__(self, reason: str, advice: str = REPAIR) -> None:
        super().__init__(reason)
        self.advice = advice
