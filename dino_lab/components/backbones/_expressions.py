"""Expressions that build a model of timm like that of a backbone, and the change of a ResNet's stem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def call(function: str, *given: str, **arguments: Any) -> str:
    """A call, with `given` expressions first and the values of `arguments` by name."""
    words = [*given, *(f"{key}={value!r}" for key, value in arguments.items())]
    return f"{function}({', '.join(words)})"


def changed(model: str, changes: Mapping[str, str]) -> str:
    """The expression `model` with attributes, by dotted name, replaced by those of other expressions."""
    steps = []
    for name, value in changes.items():
        owner, _, attribute = f"m.{name}".rpartition(".")
        steps.append(f"setattr({owner}, {attribute!r}, {value})")
    return f"[m := {model}, {', '.join(steps)}][0]"


def shrink_stem(
    model: Any, channels: int, width: int, *, stride: int = 1, pool: bool = False
) -> dict[str, str]:
    """Begin a ResNet of timm with a 3x3 convolution, in place; return the changes as expressions.

    `pool` keeps the max pooling behind it.
    """
    model.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    strides = {"stride": stride} if stride > 1 else {}
    changes = {"conv1": call("timm.layers.create_conv2d", f"{channels}", f"{width}", "3", **strides)}
    if not pool:
        model.maxpool = nn.Identity()
        changes["maxpool"] = "timm.models.resnet.nn.Identity()"
    return changes
