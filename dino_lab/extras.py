"""Packages that only some features want."""

from __future__ import annotations

import importlib
from types import ModuleType

from dino_lab.errors import UserError


def want(module: str, extra: str, whatfor: str) -> ModuleType:
    """Import a package of an extra; a UserError says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise UserError(
            f"{whatfor} needs {missing}, which is not installed: pip install 'dino-lab[{extra}]'"
        ) from error
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{whatfor}: {module} cannot be imported ({reason}); pip install -U 'dino-lab[{extra}]'"
        ) from error
