"""Components from a Python file that is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dino_lab.errors import UserError


def load_plugins(files: Sequence[Path] | None) -> None:
    """Import each file, so that its components are registered; a UserError says which failed and why."""
    for file in files or []:
        if not file.is_file():
            raise UserError(f"--plugin {file}: no such file")
        name = f"dino_lab_plugin_{file.stem}"
        module_spec = importlib.util.spec_from_file_location(name, file)
        if module_spec is None or module_spec.loader is None:
            raise UserError(f"--plugin {file}: not a Python file; its name should end in .py")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # get_type_hints and pickle look the module up by name
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--plugin {file}: {_where(error, file)}{reason}") from error


def _where(error: BaseException, file: Path) -> str:
    """`line N: ` of the innermost frame that is in `file`."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "
