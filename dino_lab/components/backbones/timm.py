"""Any model of timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.backbones import _tokens
from dino_lab.components.backbones._expressions import call, changed, shrink_stem
from dino_lab.components.backbones._positions import Positions, interpolate_as_dino
from dino_lab.errors import UserError, first_line
from dino_lab.kernels import class_token as _class_token
from dino_lab.kernels.attention import choose_attention
from dino_lab.registry import register, suggest
from dino_lab.types import BackboneOutput

Arguments = dict[str, bool | int | float | str | tuple[int, ...] | None]
# Arguments of timm that are said by other keys, or by the spec as a whole.
_SAID = {
    **{"pretrained": "pretrained", "drop_path_rate": "drop_path", "zero_init_last": "zero_init_last"},
    **{"in_chans": "data", "num_classes": "head", "img_size": "augment", "dynamic_img_size": "augment"},
}


@register("backbone", "timm")
class Timm(nn.Module):
    """A model of timm by name, without its classifier; features are the classifier's inputs.

    `pretrained` downloads weights. timm starts the last batch norm of a ResNet's blocks at 0, so that each is
    the identity at first; torchvision's, which DINO and SimCLR train, start at 1: `zero_init_last: false`.
    `stem: small` is for ResNets on images of 32 to 64 pixels: they then begin with a 3x3 convolution of
    stride 1 and without pooling (SimCLR, arXiv 2002.05709, appendix B.9). `arguments` make another model of
    the same kind: `{embed_dim: 192, depth: 6, num_heads: 3}`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        model: Annotated[
            str, Field(description="timm's name of it, such as resnet50 or vit_small_patch16_224")
        ],
        pretrained: Annotated[
            bool, Field(description="start from published weights, which are downloaded")
        ] = False,
        drop_path: Annotated[
            float, Field(ge=0, lt=1, description="stochastic depth, rising from 0, where the model has it")
        ] = 0.0,
        stem: Annotated[
            Literal["standard", "small"],
            Field(description="small: 3x3 convolution without pooling, for a ResNet on 32 to 64 pixels"),
        ] = "standard",
        positions: Positions = "timm",
        zero_init_last: Annotated[
            bool, Field(description="false: the last batch norm of a ResNet's blocks starts at 1, not at 0")
        ] = True,
        arguments: Annotated[
            Arguments, Field(description="what timm's constructor is told beside the name, by its argument")
        ] = {},  # noqa: B006 - never changed
    ) -> None:
        super().__init__()
        _check(model, pretrained, stem)
        _check_arguments(model, arguments)
        self._name = model
        given = {"in_chans": channels, "num_classes": 0, **arguments}
        begin = ({"drop_path_rate": drop_path} if drop_path else {}) | (
            {} if zero_init_last else {"zero_init_last": False}
        )
        self.model, self._arguments = _create(model, size, given, begin, pretrained)
        if positions == "dino":
            interpolate_as_dino(self.model)
        choose_attention(self.model)
        self._stem: dict[str, str] | None = None
        if stem == "small":
            self._stem = _shrink_stem(self.model, channels)
        self._class_token = _class_token.features_are_class_token(self.model)
        # Some nets end in a layer after the pooling, wider than the feature map.
        self.dim = int(getattr(self.model, "head_hidden_size", self.model.num_features))
        self.check_size(size)

    def check_size(self, size: int) -> None:
        """ValueError where images of this size cannot be cut into patches; other nets take any size."""
        _tokens.check_size(self.model, size)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D]."""
        if self._class_token:
            return _class_token.class_token_features(self.model, images)
        return self.model(images)

    def features_of_sizes(self, images: Sequence[Tensor]) -> Tensor:
        """Images of several sizes, each [N, C, H, W], to features [M, D] of all; ViTs' in few launches."""
        if self._class_token:
            return _class_token.class_token_features_of_sizes(self.model, images)
        return torch.cat([self(group) for group in images])

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens, or the last feature map, [N, D, h, w]."""
        return _tokens.tokens(self.model, images)

    def attention(self, images: Tensor) -> Tensor:
        """Last block, CLS to patches, [N, heads, h, w]; a UserError where there is no CLS token."""
        return _tokens.attention(self.model, images)

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        """Features and, where there are any, CLS of the last `blocks`, tokens and attention; one forward."""
        return _tokens.outputs(self.model, images, blocks)

    def checkpoint_gradients(self) -> None:
        """Keep activations between blocks only; a ValueError where the model has no way to."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules()):
            # Its running statistics would be moved twice by each batch.
            raise ValueError(f"{self._name} has batch norm, which must see each batch once")
        try:
            self.model.set_grad_checkpointing()
        except (AttributeError, AssertionError) as error:
            raise ValueError(f"timm's {self._name} cannot do that") from error

    def as_timm(self) -> tuple[nn.Module, str]:
        """The timm model inside, and an expression that builds an equal one."""
        line = call("timm.create_model", repr(self._name), **self._arguments)
        return self.model, line if self._stem is None else changed(line, self._stem)

    def timm_config(self) -> tuple[str, dict[str, Any]]:
        """The architecture of timm and its arguments; a UserError where these cannot say what it is."""
        if self._stem is not None:
            raise UserError("timm has no argument for stem: small, so none of its configurations says it")
        return self._name.partition(".")[0], dict(self._arguments)


def _check(model: str, pretrained: bool, stem: str) -> None:
    import timm  # seconds to import, so not before it is needed

    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}{suggest(model, timm.list_models())}")
    if pretrained and not timm.is_model_pretrained(model):
        raise ValueError(f"timm has no pretrained weights for {model}; pretrained: false starts anew")
    if stem == "small" and pretrained:
        raise ValueError("stem 'small' has other weights than the pretrained ones; choose one of the two")


def _check_arguments(model: str, arguments: Arguments) -> None:
    for name in arguments:
        if name in _SAID:
            raise ValueError(f"arguments: {name} of timm's {model} is said by {_SAID[name]}")


def _create(
    model: str, size: int, given: dict[str, Any], begin: dict[str, Any], pretrained: bool
) -> tuple[Any, dict[str, Any]]:
    """The model, built for the size of the images where it accepts one, and the arguments that it took.

    `begin` are arguments that matter for training alone, and are not among those that describe the model.
    """
    import timm

    # Weights are of no use without memory, and not worth a download while a spec is only checked.
    pretrained = pretrained and torch.get_default_device().type != "meta"
    for sizes in ({"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}):
        arguments = {**given, **sizes}
        try:
            return timm.create_model(model, pretrained=pretrained, **arguments, **begin), arguments
        except TypeError as error:
            if "img_size" not in str(error):
                raise ValueError(f"timm's {model} refuses its arguments: {error}") from error
        except Exception as error:
            if not pretrained:
                raise ValueError(
                    f"timm's {model} cannot be built for {size} pixels: {first_line(error)}"
                ) from error
            raise UserError(
                f"the weights of {model} could not be had ({first_line(error)}); "
                "pretrained: false starts anew"
            ) from error
    raise ValueError(f"timm's {model} refuses every way of telling it the size of the images")


def _shrink_stem(model: Any, channels: int) -> dict[str, str]:
    """Change the stem in place; return the changes as expressions."""
    first = getattr(model, "conv1", None)
    if not isinstance(first, nn.Conv2d) or first.kernel_size != (7, 7) or not hasattr(model, "maxpool"):
        raise ValueError(
            f"{type(model).__name__} has no 7x7 ResNet stem to make small; leave out stem: small"
        )
    return shrink_stem(model, channels, first.out_channels)
