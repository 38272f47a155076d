"""The verbs about components: list and show."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from typing import Annotated

import typer

from dino_lab.cli.options import Plugins
from dino_lab.errors import UserError, printable
from dino_lab.registry.discovery import Source, complaints, obstacle, sources
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.plugin_files import load_plugins

EXPERIMENTS = "experiments"


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
    if check and (failed := sum(verdict != "ok" for verdict in verdicts)):
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

    try:
        registry.find(source.kind, source.name)
    except UserError as error:
        return str(error)
    return "ok"


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
    owners = [kind for kind in FOLDERS if kind_or_name in registry.names(kind)]
    if not owners:
        names = sorted({name for kind in FOLDERS for name in registry.names(kind)})
        raise UserError(
            f"no component is called {kind_or_name!r}{suggest(kind_or_name, names)} (see: dino-lab list)"
        )
    for position, kind in enumerate(owners):
        print("\n" * (position > 0), end="")
        _print_component(kind, kind_or_name)


def _print_component(kind: str, name: str) -> None:
    from dino_lab.cli.console import print_table
    from dino_lab.cli.signature import default_in_words, type_in_words
    from dino_lab.registry import registry

    entry = registry.find(kind, name)
    origin = registry.source(kind, name).origin
    # A file that was given with --plugin is its own origin.
    print(f"{kind}: {name}", *([] if entry.where.startswith(origin) else [origin]), entry.where, sep="\n")
    print(f"\n{inspect.getdoc(entry.cls) or 'no description: Python runs without docstrings (-OO)'}\n")
    fields = {key: field for key, field in entry.params.model_fields.items() if key != "name"}
    if not fields:
        return print("no parameters")
    print_table(
        ["parameter", "type", "default", ""],
        [
            [
                key,
                type_in_words(field.annotation, field.metadata),
                default_in_words(field),
                field.description or "",
            ]
            for key, field in fields.items()
        ],
    )
