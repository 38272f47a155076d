"""The ten kinds of component, and where each one lives.

A kind's built-in components are the files of `dino_lab/components/<folder>`; a plugin's components are
the entry points of the group `dino_lab.<folder>`. Nothing here imports torch, so that names can be
listed at once.
"""

from __future__ import annotations

FOLDERS: dict[str, str] = {
    "data": "data",
    "augment": "augment",
    "operation": "operations",
    "backbone": "backbones",
    "head": "heads",
    "teacher": "teachers",
    "targets": "targets",
    "loss": "losses",
    "regularizer": "regularizers",
    "evaluator": "evaluators",
}

# Modules that make components of a kind on demand, by what stands before the dot in their names: each has a
# function `component`, from what stands behind it to a class.
FAMILIES: dict[str, dict[str, str]] = {"operation": {"kornia": "dino_lab.components.operations._kornia"}}

# Which kind each field of a Spec names.
KIND_OF_FIELD: dict[str, str] = {
    "data": "data",
    "evaluate_on": "data",
    "augment": "augment",
    "backbone": "backbone",
    "head": "head",
    "predictor": "head",
    "teacher": "teacher",
    "targets": "targets",
    "loss": "loss",
    "token_head": "head",
    "token_targets": "targets",
    "token_loss": "loss",
    "regularizers": "regularizer",
    "evaluators": "evaluator",
}
# Fields that may be null.
OPTIONAL = ("evaluate_on", "predictor", "token_head", "token_targets", "token_loss")
LISTS = ("regularizers", "evaluators")  # fields that name any number of components; all others name one
