"""The verb that prints a shell's completion script."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

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
