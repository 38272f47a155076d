"""One HTML file with everything in it: a template, filled, with styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from dino_lab import __version__
from dino_lab.errors import UserError, printable

# No tab and no newline.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SCRIPTS = ("theme.js", "tables.js", "charts.js", "scatter.js")


def page(template: str, **content: Any) -> str:
    """A template of `templates/`, filled; all content but the package's own is escaped.

    The page loads nothing, and runs only the script that is in it (Content-Security-Policy).
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dino_lab.reports.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_controls,
    )
    environment.filters |= {"breakable": _breakable, "printable": printable}
    script = "\n".join(_text(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        version=__version__,
        style=Markup(_text("style.css")),
        script=Markup(script),
        script_hash=digest,
        **content,
    )


def check_target(target: Path) -> None:
    """A UserError where no report can be written, before any work is done."""
    if target.suffix not in (".html", ".htm"):
        raise UserError(f"--to {target}: should end in .html")
    if target.is_dir():
        raise UserError(f"--to {target}: is a folder; name a file in it")
    if not target.parent.is_dir():
        raise UserError(f"--to {target}: there is no folder {target.parent}")
    try:
        probe = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); --to names another place") from None


def _without_controls(value: Any) -> Any:
    """Text with ESC and other control characters written as escapes; markup stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return CONTROLS.sub(lambda found: printable(found[0]), value)


def _breakable(name: str) -> Markup:
    """A name that may go on in another line behind a dot or an underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(printable(name)))))


def _text(name: str) -> str:
    return (files("dino_lab.reports.page") / "templates" / name).read_text(encoding="utf-8")
