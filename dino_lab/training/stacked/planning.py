"""Which specs may be stacked."""

from __future__ import annotations

import json

import torch

from dino_lab.building.components import make_component, make_method
from dino_lab.errors import first_line
from dino_lab.network import Network
from dino_lab.protocols import Augment
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.training.stacked.stack import Stack

EQUAL = {"data", "backbone", "head", "predictor", "train"}  # sections of all specs of a stack


def form(spec: Spec, registry: Registry) -> str:
    """What specs of one stack have in common, as text."""
    sections = spec.model_dump(mode="json", serialize_as_any=True, include=EQUAL)
    return json.dumps([sections, _augment(spec, registry).groups, spec.epochs_before], sort_keys=True)


def reason_to_be_alone(spec: Spec, registry: Registry) -> str | None:
    """Why a spec cannot be trained together with others of its form, or None if it can."""
    train = spec.train
    if spec.token_loss is not None:
        return "it has a token_loss"
    if train.accumulate > 1:
        return "train.accumulate is above 1"
    if train.compile or train.gradient_checkpointing:
        key = "compile" if train.compile else "gradient_checkpointing"
        return f"train.{key} is {str(getattr(train, key)).lower()}"
    augment = _augment(spec, registry)
    crops = [torch.zeros(views, 2, 3, pixels, pixels, device="meta") for views, pixels in augment.groups]
    try:
        Stack([_student(spec, registry, augment) for _ in range(2)])([crops, crops])
    except Exception as error:
        if "randomness" in str(error):
            return "its networks draw random numbers (dropout or stochastic depth)"
        return f"torch.func.vmap cannot stack its networks ({first_line(error)})"
    return None


def _student(spec: Spec, registry: Registry, augment: Augment) -> Network:
    """Without memory."""
    device = torch.device("meta")
    with device:
        method = make_method(spec, registry, device, augment, channels=3, mean=(0.0,), std=(1.0,))
    return method.student


def _augment(spec: Spec, registry: Registry) -> Augment:
    augment: Augment = make_component(spec, registry, torch.device("cpu"), "augment")
    return augment
