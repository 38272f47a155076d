"""A model of timm as the teacher's network."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dino_lab.errors import UserError, first_line
from dino_lab.network import Network
from dino_lab.registry import suggest


class TimmModel(BaseModel, frozen=True, extra="forbid"):
    """A model of timm; crops are normalised and resized as for its training."""

    model: str = Field(description="timm's name of it, such as resnet50")
    pretrained: bool = Field(True, description="with published weights, which are downloaded")
    output: Literal["logits", "features"] = Field(
        "logits", description="outputs of its classifier, or the features that the classifier gets"
    )


class _Resized(nn.Module):
    """A model whose images are resized to the size that it was made for."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K]."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images)


class _NoHead(nn.Identity):
    """The identity, in place of a head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def load_timm(source: TimmModel) -> Network:
    """The model as a network whose head is the identity."""
    model = _create(source)
    # Some nets end in a layer after the pooling, wider than the feature map.
    width = getattr(model, "head_hidden_size", None) or model.num_features
    dim = int(model.num_classes if source.output == "logits" else width)
    if dim == 0:
        raise ValueError(f"timm's {source.model} has no classifier; take output: features")
    config = model.pretrained_cfg
    backbone = _Resized(model, tuple(config["input_size"][1:]))
    return Network(backbone, _NoHead(dim), mean=config["mean"], std=config["std"])


def _create(source: TimmModel) -> Any:
    import timm  # seconds to import, so not before it is needed

    name = source.model
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    if source.pretrained and not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no pretrained weights for {name}; choose another, or pretrained: false")
    # Weights are of no use without memory, and not worth a download while a spec is only checked.
    pretrained = source.pretrained and torch.get_default_device().type != "meta"
    arguments = {} if source.output == "logits" else {"num_classes": 0}
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        what = "weights could not be had" if pretrained else "model cannot be built"
        raise UserError(f"timm's {name}: its {what} ({first_line(error)})") from error
