"""The nine kinds of component, and where each one lives.

A kind's built-in components are the files of `dino_lab/components/<folder>`; a plugin's components are
the entry points of the group `dino_lab.<folder>`. Nothing here imports torch, so that names can be
listed at once.
"""

from __future__ import annotations

FOLDERS: dict[str, str] = {
    "data": "data",
    "augment": "augment",
    "backbone": "backbones",
    "head": "heads",
    "teacher": "teachers",
    "targets": "targets",
    "loss": "losses",
    "regularizer": "regularizers",
    "evaluator": "evaluators",
}

# Which kind each field of a Spec names.
KIND_OF_FIELD: dict[str, str] = {
    "data": "data",
    "augment": "augment",
    "backbone": "backbone",
    "head": "head",
    "predictor": "head",
    "teacher": "teacher",
    "targets": "targets",
    "loss": "loss",
    "regularizers": "regularizer",
    "evaluators": "evaluator",
}
LISTS = ("regularizers", "evaluators")  # fields that name any number of components; all others name one
