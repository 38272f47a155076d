"""The verbs about components: list and show."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Plugins
from dino_lab.errors import UserError, printable
from dino_lab.registry.discovery import Source, complaints, obstacle, sources
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from pydantic import BaseModel

EXPERIMENTS = "experiments"
OK = "ok"  # of a component that can be imported
NO_DESCRIPTION = "no description: Python runs without docstrings (-OO)"


def kinds() -> list[str]:
    """What a shell completes a kind with."""
    return list(FOLDERS)


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            autocompletion=lambda: [*kinds(), EXPERIMENTS],
            help=f"Only this kind; or `{EXPERIMENTS}`, the YAML files that come with dino-lab.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Import each one and say which fail.")] = False,
    plugin: Plugins = None,
) -> None:
    """List the components and where each comes from.

    What is known to be broken without importing anything is marked; --check finds the rest.
    """
    load_plugins(plugin)
    from dino_lab.cli.console import print_table

    if kind == EXPERIMENTS:
        return _print_experiments()
    if kind is not None:
        must_be_a_kind(kind)
    listed = [source for k in FOLDERS if kind in (None, k) for source in _sources(k, bool(plugin))]
    verdicts = [_import_verdict(source) for source in listed] if check else _verdicts(listed)
    rows = [
        [source.kind, source.name, source.origin, verdict]
        for source, verdict in zip(listed, verdicts, strict=True)
    ]
    print_table(["kind", "name", "origin", "import" if check else ""], rows)
    for complaint in complaints():
        print(f"left out: {printable(complaint)}", file=sys.stderr)
    if check and (failed := sum(not verdict.startswith(OK) for verdict in verdicts)):
        print(f"{failed} of {len(rows)} failed")
        raise typer.Exit(1)


def _print_experiments() -> None:
    from dino_lab.cli.console import print_table
    from dino_lab.spec.shipped import description, experiments

    print_table(["name", "", ""], [[name, description(file), ""] for name, file in experiments().items()])


def must_be_a_kind(kind: str) -> None:
    """A UserError unless there is such a kind."""
    if kind not in FOLDERS:
        raise UserError(f"no kind is called {kind!r} (there are: {', '.join(FOLDERS)})")


def _sources(kind: str, plugin: bool) -> list[Source]:
    """Only a file given with --plugin makes it necessary to ask the registry, which costs 0.3 s to import."""
    if not plugin:
        return sorted(sources(kind), key=lambda source: source.name)
    from dino_lab.registry import registry

    return registry.sources(kind)


def _verdicts(listed: list[Source]) -> list[str]:
    """What is wrong with each, as far as that is known without importing it."""
    count = Counter((source.kind, source.name) for source in listed)
    twice = [count[source.kind, source.name] > 1 for source in listed]
    reasons = [
        "the name has two owners" if two else obstacle(s) for s, two in zip(listed, twice, strict=True)
    ]
    return [f"broken: {reason}" if reason else "" for reason in reasons]


def _import_verdict(source: Source) -> str:
    from dino_lab.registry import registry
    from dino_lab.registry.parameters import undescribed

    try:
        missing = undescribed(registry.find(source.kind, source.name).params)
    except UserError as error:
        return str(error)
    return f"{OK}, but without a description: {', '.join(missing)}" if missing else OK


def show(
    kind_or_name: Annotated[
        str, typer.Argument(metavar="[KIND] NAME", autocompletion=kinds, help="As `list` prints them.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="", show_default=False)] = None,
    plugin: Plugins = None,
) -> None:
    """Show one component and its parameters.

    Prints where it comes from, what it computes, and its parameters with types, ranges and defaults.
    """
    load_plugins(plugin)
    from dino_lab.registry import registry, suggest

    if name is not None:
        must_be_a_kind(kind_or_name)
        return _print_component(kind_or_name, name)
    owners = [
        kind for kind in FOLDERS if kind_or_name in registry.names(kind) or registry.makes(kind, kind_or_name)
    ]
    if not owners:
        names = sorted({name for kind in FOLDERS for name in registry.names(kind)})
        raise UserError(
            f"no component is called {kind_or_name!r}{suggest(kind_or_name, names)} (see: dino-lab list)"
        )
    for position, kind in enumerate(owners):
        print("\n" * (position > 0), end="")
        _print_component(kind, kind_or_name)


def _print_component(kind: str, name: str) -> None:
    from dino_lab.registry import registry
    from dino_lab.registry.parameters import mappings_in

    entry = registry.find(kind, name)
    origin = registry.source(kind, name).origin
    # A file that was given with --plugin is its own origin.
    print(f"{kind}: {name}", *([] if entry.where.startswith(origin) else [origin]), entry.where, sep="\n")
    print(f"\n{_wrapped(inspect.getdoc(entry.cls) or NO_DESCRIPTION)}\n")
    _print_parameters(entry.params)
    for mapping in mappings_in([entry.params]):
        doc = inspect.cleandoc(mapping.__doc__ or "")  # its own, not that of BaseModel
        print(f"\n{_wrapped(f'{mapping.__name__}: {doc}'.removesuffix(': '))}\n")
        _print_parameters(mapping)


def _print_parameters(model: type[BaseModel]) -> None:
    from rich.text import Text

    from dino_lab.cli.console import console, wrapped_table
    from dino_lab.spec.parameter_words import rows

    parameters = rows(model)
    if not parameters:
        return print("no parameters")
    out = console()
    width = max(len(row.key) for row in parameters)
    for line in wrapped_table(parameters, out.width):
        out.print(Text.assemble((line[:width], "cyan"), line[width:]), soft_wrap=True)


def _wrapped(text: str) -> str:
    """Paragraphs in the width of the terminal; indented ones, such as code, as they are."""
    from dino_lab.cli.console import console

    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if re.search(r"^\s", paragraph, re.MULTILINE) else textwrap.fill(paragraph, console().width)
        for paragraph in paragraphs
    )
