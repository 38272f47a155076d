"""A ResNet of any width and depth, with a stem for small images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.backbones import _tokens
from dino_lab.components.backbones._expressions import call, changed, shrink_stem
from dino_lab.registry import register
from dino_lab.types import BackboneOutput

Width = Annotated[int, Field(gt=0, multiple_of=2)]
Count = Annotated[int, Field(gt=0, le=100)]
ZeroInitLast = Annotated[
    bool, Field(description="each block is the identity at first: its last batch norm starts at 0, not at 1")
]


@register("backbone", "resnet")
class ResNet(nn.Module):
    """ResNet of basic blocks (arXiv 1512.03385, Sec. 3.3); features are the mean of the last feature map.

    Widths double and the map halves from stage to stage. The stem is a 3x3 convolution instead of 7x7, as is
    usual for small images (SimCLR, arXiv 2002.05709, Appendix B.9). `timm` has the standard ResNets: width 64
    and blocks [2, 2, 2, 2] with `stem_stride: 1` is its resnet18 with `stem: small`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: Annotated[
            Width, Field(description="channels of the first stage, an even number; ResNet-18: 64")
        ] = 32,
        blocks: Annotated[
            tuple[Count, Count, Count, Count],
            Field(description="blocks of each of the four stages; ResNet-18: [2, 2, 2, 2]"),
        ] = (1, 1, 1, 1),
        stem_stride: Annotated[
            Literal[1, 2, 4],
            Field(description="pixels of the image to one of the first map; 1 for 32, 2 for 64, 4 from 128"),
        ] = 1,
        drop_path: Annotated[
            float, Field(ge=0, lt=1, description="stochastic depth of the last block, rising from 0")
        ] = 0.0,
        zero_init_last: ZeroInitLast = False,
    ) -> None:
        super().__init__()
        from timm.models import ResNet as TimmResNet  # seconds to import, so not before it is needed
        from timm.models.resnet import BasicBlock

        widths = tuple(width * 2**stage for stage in range(len(blocks)))
        # timm's plain stem always has 64 channels; those of its deep stem follow stem_width.
        self._arguments: dict[str, Any] = {
            **{"layers": blocks, "channels": widths, "in_chans": channels, "num_classes": 0},
            **{"stem_type": "deep", "stem_width": width // 2},
        }
        self.model = TimmResNet(
            BasicBlock, **self._arguments, drop_path_rate=drop_path, zero_init_last=zero_init_last
        )
        self._stem = shrink_stem(
            self.model, channels, width, stride=min(stem_stride, 2), pool=stem_stride == 4
        )
        self.dim = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D]."""
        return self.model(images)

    def tokens(self, images: Tensor) -> Tensor:
        """The last feature map, [N, D, h, w]."""
        return _tokens.tokens(self.model, images)

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        """Features and the last feature map; one forward."""
        return _tokens.outputs(self.model, images, blocks)

    def as_timm(self) -> tuple[nn.Module, str]:
        """The timm model inside, and an expression that builds an equal one."""
        block = "timm.models.resnet.BasicBlock"
        return self.model, changed(call("timm.models.ResNet", block, **self._arguments), self._stem)
