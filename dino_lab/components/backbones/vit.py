"""A vision transformer of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.backbones import _tokens
from dino_lab.components.backbones._expressions import call, changed
from dino_lab.components.backbones._positions import Positions, interpolate_as_dino
from dino_lab.errors import UserError
from dino_lab.kernels import class_token as _class_token
from dino_lab.kernels.attention import choose_attention
from dino_lab.registry import register
from dino_lab.types import BackboneOutput


@register("backbone", "vit")
class Vit(nn.Module):
    """Vision transformer with free width, depth, heads and patch (arXiv 2010.11929, Sec. 3.1).

    Features are the CLS token after the last norm. Position embeddings are interpolated for crops of other
    sizes. Weights start normal, by default with std 0.02 as in DINO (arXiv 2104.14294); a network narrower
    than its 384 learns sooner from larger ones, 1 / sqrt(width). `drop_path` is the rate of stochastic depth
    of the last block, rising linearly from 0. `train_patches: false` holds the patch projection at its first
    weights (MoCo v3, arXiv 2104.02057, Sec. 4.2). `stem: convolutions` replaces the projection by 3x3
    convolutions of stride 2 with batch norm and ReLU between them, which learn sooner from few images (after
    Xiao et al., arXiv 2106.14881, Sec. 4).
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: Annotated[
            int, Field(gt=0, description="dimensions D of a token; ViT-Ti 192, ViT-S 384, ViT-B 768")
        ] = 192,
        depth: Annotated[int, Field(gt=0, le=200, description="blocks; ViT-Ti, ViT-S and ViT-B 12")] = 12,
        heads: Annotated[
            int, Field(gt=0, description="attention heads, a divisor of `width`; ViTs have width / 64")
        ] = 3,
        patch: Annotated[
            int, Field(gt=0, description="side of a patch, in pixels; every crop is a multiple")
        ] = 16,
        mlp_ratio: Annotated[
            float, Field(gt=0, description="hidden width of the MLP of a block, relative to `width`")
        ] = 4.0,
        drop_path: Annotated[
            float,
            Field(ge=0, lt=1, description="stochastic depth of the last block, rising from 0; DINO: 0.1"),
        ] = 0.0,
        init_std: Annotated[
            float,
            Field(gt=0, description="standard deviation of the first weights of linear layers; DINO: 0.02"),
        ] = 0.02,
        positions: Positions = "timm",
        stem: Annotated[
            Literal["patches", "convolutions"],
            Field(description="patches: one projection; convolutions: 3x3 of stride 2, for a `patch` of 2^n"),
        ] = "patches",
        train_patches: Annotated[
            bool, Field(description="false: the patch projection keeps its first weights; MoCo v3: false")
        ] = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.patch = patch
        self.check_size(size)
        from timm.models import VisionTransformer  # seconds to import, so not before it is needed

        self._arguments: dict[str, Any] = {
            **{"img_size": size, "patch_size": patch, "in_chans": channels, "embed_dim": width},
            **{"depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio},
            **{"num_classes": 0, "dynamic_img_size": True},
        }
        self.model = VisionTransformer(**self._arguments, drop_path_rate=drop_path)
        self._initialise(init_std)
        self._stem: dict[str, Any] | None = None
        if stem == "convolutions":
            self._stem = _stem_arguments(channels, width, patch)
            self.model.patch_embed.proj = _tokens.conv_stem()(**self._stem)
        self.model.patch_embed.requires_grad_(train_patches)
        if positions == "dino":
            interpolate_as_dino(self.model)
        choose_attention(self.model)
        self.dim = width

    def _initialise(self, init_std: float) -> None:
        # timm starts CLS at almost 0; DINO draws all tokens and weights alike (std 0.02).
        nn.init.trunc_normal_(self.model.cls_token, std=0.02)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std)

    def check_size(self, size: int) -> None:
        """ValueError where images of this size cannot be cut into patches."""
        if size % self.patch:
            raise ValueError(f"{size} is not a multiple of patch {self.patch}")

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D]."""
        return _class_token.class_token_features(self.model, images)

    def features_of_sizes(self, images: Sequence[Tensor]) -> Tensor:
        """Images of several sizes, each [N, C, H, W], to features [M, D] of all, in few launches."""
        return _class_token.class_token_features_of_sizes(self.model, images)

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens [N, D, h, w]."""
        return _tokens.tokens(self.model, images)

    def attention(self, images: Tensor) -> Tensor:
        """Last block, CLS to patches, [N, heads, h, w]."""
        return _tokens.attention(self.model, images)

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        """Features, CLS of the last `blocks`, tokens and attention; one forward."""
        return _tokens.outputs(self.model, images, blocks)

    def checkpoint_gradients(self) -> None:
        """Keep activations between blocks only; the backward pass computes the others again."""
        self.model.set_grad_checkpointing()

    def as_timm(self) -> tuple[nn.Module, str]:
        """The timm model inside, and an expression that builds an equal one."""
        line = call("timm.models.VisionTransformer", **self._arguments)
        if self._stem is None:
            return self.model, line
        stem = call("timm.models.vision_transformer_hybrid.ConvStem", **self._stem)
        return self.model, changed(line, {"patch_embed.proj": stem})

    def timm_config(self) -> tuple[str, dict[str, Any]]:
        """The architecture of timm and its arguments; a UserError where these cannot say what it is."""
        if self._stem is not None:
            raise UserError("timm has no argument for stem: convolutions, so no configuration says it")
        return "vit_tiny_patch16_224", dict(self._arguments)


def _stem_arguments(channels: int, width: int, patch: int) -> dict[str, Any]:
    """Of timm's ConvStem, whose widths double up to that of the tokens; a ValueError for other patches."""
    count = patch.bit_length() - 1
    if count == 0 or patch != 2**count:
        raise ValueError(f"patch {patch} is no power of 2 above 1, as stem: convolutions needs")
    widths = tuple(max(width >> i, 1) for i in reversed(range(count)))
    return {"in_chans": channels, "depth": count, "channels": widths, "stride": (2,) * count}
