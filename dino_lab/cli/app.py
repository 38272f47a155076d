"""The verbs, and what the process says and returns when one of them fails."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from dino_lab import __version__
from dino_lab.cli import (
    attend,
    branch,
    compare,
    components,
    data,
    diff,
    evaluate,
    export,
    new,
    pack,
    report,
    run,
    show_crops,
    sweep,
    validate,
)
from dino_lab.errors import FailedElsewhere, SpecError, UserError, printable

VARIABLE = "_DINO_LAB_COMPLETE"  # the name that click derives from ours


class Shell(StrEnum):
    """Shells with completion."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="Whose syntax.", show_default=False)],
) -> None:
    """Print the completion script of a shell.

    Use: source <(dino-lab completion bash)
    """
    from typer._completion_shared import get_completion_script

    print(get_completion_script(prog_name="dino-lab", complete_var=VARIABLE, shell=shell.value))


def answer_shell() -> None:
    """Make the next call of the app answer a completion script, if it was one that started us.

    Typer does this itself only together with its options --install-completion and --show-completion,
    which write to the user's start-up files.
    """
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()


# What a path that someone typed may lead to; every other OSError is the machine's.
PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
NUMBERS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.EROFS)
DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="dino-lab",
    help="A declarative experiment runner for self-supervised vision: one YAML file, one run.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    run.run,
    branch.fork,
    branch.extend,
    sweep.sweep,
    compare.compare,
    compare.best,
    report.report,
    validate.validate,
    diff.diff,
    components.list_,
    components.show,
    show_crops.show_crops,
    new.new,
    validate.schema,
    evaluate.eval_,
    export.export,
    attend.attend,
    data.data,
    pack.pack,
    completion,
):
    app.command(verb.__name__.rstrip("_").replace("_", "-"))(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dino-lab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    given = [_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    answer_shell()
    try:
        code = app(given or ["--help"], prog_name="dino-lab", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; a second complaint at interpreter exit would help nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except FailedElsewhere as error:  # which another process of the run says
        return _in_words(error.cause)[0]
    except Exception as error:
        if os.environ.get("DINO_LAB_TRACEBACK"):
            traceback.print_exception(error)
        code, text = _in_words(error)
        # Only a SpecError has several lines; elsewhere a line break is part of a file's name.
        lines = text.splitlines() if isinstance(error, SpecError) else [text]
        print(*map(printable, lines), sep="\n", file=sys.stderr)
        return code


def _at_home(word: str) -> str:
    """`~/x` and `--runs=~/x` with the user's folder for `~`, where the shell left that to us."""
    option, path = re.fullmatch(r"(--[a-z-]+=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    return option + os.path.expanduser(path) if path == "~" or path.startswith("~/") else word


def _in_words(error: Exception) -> tuple[int, str]:
    """Exit code and the line that is printed."""
    if isinstance(error, UserError):
        return WRONG_REQUEST, str(error)
    # Typer brings its own copy of click from 0.16 on, so the class of a usage error is told by what it does.
    if format_message := getattr(error, "format_message", None):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "dino-lab"
        said = " ".join(format_message().split()).rstrip(".")
        return WRONG_REQUEST, f"{said} (see: {command} --help)"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return FAILED, f"no space left on the disk{where}; free some and run the same command to continue"
    if isinstance(error, OSError) and error.filename:
        wrong = isinstance(error, PATHS) or error.errno in NUMBERS
        return WRONG_REQUEST if wrong else FAILED, f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FAILED, "out of memory; a smaller train.batch_size, or a larger train.accumulate, needs less"
    first = (str(error).strip().splitlines() or [""])[0]
    hint = "DINO_LAB_TRACEBACK=1 shows where"
    return FAILED, f"internal error: {type(error).__name__}: {first} ({hint})"
