"""A teacher whose weights are fixed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from dino_lab.building.single import find_single, open_single
from dino_lab.components.teachers._student_copy import TeacherMode, as_teacher, student_copy
from dino_lab.errors import UserError, first_line
from dino_lab.network import Network
from dino_lab.protocols import method
from dino_lab.registry import register, registry, suggest
from dino_lab.runs.open import open_run
from dino_lab.types import BackboneOutput, Output, Views


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
        return self.model(self._resize(images))

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        """Outputs [N, K] as features, and patch tokens; of a backbone component all that it gives."""
        images = self._resize(images)
        if (component := method(self.model, "outputs")) is not None:
            found: BackboneOutput = component(images, blocks)
            return found
        model: Any = self.model  # of timm, whose own way to tokens this is
        last, (tokens,) = model.forward_intermediates(images, indices=1, norm=True)
        return BackboneOutput(model.forward_head(last), tokens=tokens)

    def _resize(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == self.size:
            return images
        return F.interpolate(images, self.size, mode="bicubic", antialias=True)


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


class TrainedRun(BaseModel, frozen=True, extra="forbid"):
    """The network of a run of this package, with its head."""

    path: Path = Field(description="folder of the run, `runs/NAME/HASH`")
    of: Literal["teacher", "student"] = Field(
        "teacher", description="network that is taken; the student where the teacher has no network"
    )
    output: Literal["head", "features"] = Field(
        "head", description="outputs of its head, or the features that the head gets"
    )


class TrainedWeights(BaseModel, frozen=True, extra="forbid"):
    """A backbone in a file or folder of weights, in any format that `eval` takes; outputs are features."""

    path: Path = Field(description="file, or folder of timm or Hugging Face")
    of: Literal["teacher", "student"] | None = Field(
        None, description="network that is taken of a file with two; null: the one that its authors evaluate"
    )
    size: int | None = Field(
        None, gt=0, description="pixels that crops are resized to; null: they stay as they are"
    )


@register("teacher", "frozen")
class Frozen(nn.Module):
    """A network whose weights never change: of a `run`, of `timm`, of `weights`, or the student's first ones.

    For distillation (Hinton et al., arXiv 1503.02531, Sec. 2) and BYOL's fixed random network (arXiv
    2006.07733, Sec. 3). It must have as many outputs as the student's head, which is the projection where
    features of another width are learned (FitNets, Romero et al., arXiv 1412.6550, Sec. 2.2). Patch tokens
    for `token_loss` are those of its backbone. BatchNorm uses its running statistics, or in `mode: train`
    those of the batch. Evaluators get the student, which is what is learned.
    """

    network = None

    def __init__(
        self,
        student: Network,
        *,
        run: Annotated[
            TrainedRun | None, Field(description="take the network of a finished run of this package")
        ] = None,
        timm: Annotated[TimmModel | None, Field(description="take a model of timm")] = None,
        weights: Annotated[TrainedWeights | None, Field(description="take a backbone out of a file")] = None,
        mode: TeacherMode = "eval",
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (run, timm, weights)) > 1:
            raise ValueError("one teacher, please: either run, timm or weights")
        self._from_elsewhere = any(given is not None for given in (run, timm, weights))
        self.source, self.mode = _source(student, run, timm, weights), mode
        if student.token_head is not None and self._from_elsewhere:
            self.source.token_head = nn.Identity()
        self.checksum = _checksum(self.source)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the network stays in evaluation mode unless `mode: train` asks for it."""
        super().train(mode)
        self.source.train(mode and self.mode == "train")
        return self

    # In the state_dict beside or in place of the weights: a resumed run must find the same ones.
    def get_extra_state(self) -> Tensor:
        """The checksum of the network's weights."""
        return torch.tensor(self.checksum)

    def set_extra_state(self, state: Tensor) -> None:
        """A UserError where the weights are others than when the run began."""
        if int(state) != self.checksum:
            raise UserError(
                "teacher: its weights are others than when this run began; put the old ones back, or train "
                "under another name"
            )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without a network that a resumed run has from where it came from."""
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if not (self._from_elsewhere and k.startswith("source."))}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The student's first weights, where they were kept; a network from elsewhere is there already."""
        kept = {k.removeprefix("source."): v for k, v in state_dict.items() if k.startswith("source.")}
        if kept and not self._from_elsewhere:
            self.source.load_state_dict(kept, strict)
            # That of the first weights: in `mode: train` running statistics have moved since.
            self.checksum = int(state_dict.get("_extra_state", self.checksum))
        rest = {k: v for k, v in state_dict.items() if not k.startswith("source.")}
        return super().load_state_dict({**super().state_dict(), **rest}, strict, assign)

    @torch.no_grad()
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """The network's outputs [T, B, K] for the views in crops[0]."""
        return self.source(views.crops[:1]).z

    @torch.no_grad()
    def forward_tokens(self, views: Views, student: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and patch tokens [T, B, D, h, w] of its backbone; of first weights, as the student's."""
        output = self.source(views.crops[:1])
        return output.z, output.tokens

    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Nothing to do."""


def _checksum(network: Network) -> int:
    """CRC-32 of all weights and buffers; 0 while a spec is checked without memory."""
    checksum = 0
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_meta:
            return 0
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(content.tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum


def load_run(source: TrainedRun) -> Network:
    """The network of a run, or with the identity as its head."""
    run = open_run(source.path, registry)
    if source.output == "head":
        return run.network(source.of)
    network = run.backbone(source.of)
    network.head = _NoHead(int(network.backbone.dim))  # type: ignore[arg-type]
    return network


def load_weights(source: TrainedWeights) -> Network:
    """The backbone as a network whose head is the identity, with the normalisation of its images."""
    found = find_single(str(source.path.expanduser()), registry, size=source.size, of=source.of)
    network = open_single(found, registry, torch.get_default_device()).network
    dim = int(network.backbone.dim)  # type: ignore[arg-type]
    backbone = network.backbone if source.size is None else _Resized(network.backbone, (source.size,) * 2)
    mean, std = found.mean, found.std
    assert mean is not None, "weights in a file have one"
    assert std is not None, "weights in a file have one"
    return Network(backbone, _NoHead(dim), mean=mean, std=std)


def _source(
    student: Network, run: TrainedRun | None, timm: TimmModel | None, weights: TrainedWeights | None
) -> Network:
    if run is not None:
        network, who = load_run(run), f"the network of {run.path}"
    elif timm is not None:
        network, who = load_timm(timm), f"timm's {timm.model}"
    elif weights is not None:
        network, who = load_weights(weights), f"the backbone of {weights.path}"
    else:
        return student_copy(student)
    given, wanted = network.head.dim, student.head.dim
    if given != wanted:
        raise ValueError(f"{who} has {given} outputs, and head.dim is {wanted}")
    return as_teacher(network)
