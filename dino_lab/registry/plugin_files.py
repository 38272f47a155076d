"""Components from a Python file that is not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from dino_lab.errors import UserError

PREFIX = "dino_lab_plugin_"  # of the modules


def load_plugins(files: Sequence[Path] | None) -> None:
    """Import each file, so that its components are registered; a UserError says which failed and why."""
    for file in {file.resolve(): file for file in files or []}.values():
        if not _is_file(file):
            raise UserError(f"--plugin {file}: no such file")
        name = _module_name(file)
        module_spec = importlib.util.spec_from_file_location(name, file)
        if module_spec is None or module_spec.loader is None:
            raise UserError(f"--plugin {file}: not a Python file; its name should end in .py")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # get_type_hints and pickle look the module up by name
        try:
            module_spec.loader.exec_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of somebody else's code, which may exit
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--plugin {file}: {_where(error, file)}{reason}") from error


def loaded_plugins() -> list[Path]:
    """The files that were imported, in this order."""
    files = [
        getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(PREFIX)
    ]
    return [Path(file) for file in files if file is not None]


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name of 300 letters
        return False


def _module_name(file: Path) -> str:
    """A name of its own for each file, also for two that are called the same."""
    name = f"{PREFIX}{file.stem}"
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(name for name in names if _is_free(name, file))


def _is_free(name: str, file: Path) -> bool:
    """Whether no other file is imported under that name."""
    other = getattr(sys.modules.get(name), "__file__", None)
    return other is None or Path(other).resolve() == file.resolve()


def _where(error: BaseException, file: Path) -> str:
    """`line N: ` of the innermost frame that is in `file`."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "
