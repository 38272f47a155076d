"""One experiment, as data: everything that decides the outcome of a run, and nothing else."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from dino_lab.registry import Params
from dino_lab.schedule import Rate, Schedule, constant

UnitInterval = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a spec that is no component."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LrScaling(Section):
    """The learning rate grows with the batch: times batch_size / reference, or its square root.

    Only the start of the schedule is scaled; its end is a floor (DINO, Sec. 3.2, and its code).
    """

    rule: Literal["none", "linear", "sqrt"] = "linear"
    reference: int = Field(256, gt=0)

    def factor(self, batch_size: int) -> float:
        """What the rate is multiplied with."""
        ratio = batch_size / self.reference
        return {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[self.rule]


class Clip(Section):
    """Gradient clipping by L2 norm: of each tensor by itself (DINO) or of all together (DINOv2)."""

    norm: float = Field(3.0, gt=0)
    per: Literal["tensor", "all"] = "tensor"


class Optim(Section):
    """What every optimizer has. Biases and 1-D tensors are not decayed."""

    lr: Rate = Schedule(start=5e-4, end=1e-6, shape="cosine", warmup=0.1)
    lr_scaling: LrScaling = LrScaling()
    weight_decay: Rate = Schedule(start=0.04, end=0.4, shape="cosine")
    clip: Clip | None = Clip()
    freeze_last_layer: UnitInterval = Field(
        0.0, description="share of the run in which the head's last layer has no gradient (DINO's code)"
    )
    constant_predictor_lr: bool = Field(
        False, description="the predictor keeps `lr.start` (SimSiam, arXiv 2011.10566, Sec. 4.2)"
    )


class AdamW(Optim):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); rate, decay and clipping are DINO's (Sec. 3.2)."""

    name: Literal["adamw"]
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of the running means of g and g^2")


class Sgd(Optim):
    """Stochastic gradient descent with momentum; the defaults are SimSiam's (arXiv 2011.10566, Sec. 3)."""

    name: Literal["sgd"]
    momentum: UnitInterval = 0.9
    lr: Rate = Field(
        Schedule(start=0.05, end=0.0, shape="cosine"), description="MoCo (arXiv 1911.05722) starts at 0.03"
    )
    weight_decay: Rate = constant(1e-4)
    clip: Clip | None = None


class Lars(Optim):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888); 1-D tensors take the plain step.

    The defaults are SimCLR's (arXiv 2002.05709, Sec. 2.3), of 100 epochs.
    """

    name: Literal["lars"]
    momentum: UnitInterval = 0.9
    trust_coefficient: float = Field(0.001, gt=0)
    lr: Rate = Field(
        Schedule(start=0.3, end=0.0, shape="cosine", warmup=0.1),
        description="BYOL (arXiv 2006.07733, Sec. 3.3) starts at 0.2",
    )
    weight_decay: Rate = Field(constant(1e-6), description="BYOL (arXiv 2006.07733, Sec. 3.3) has 1.5e-6")
    clip: Clip | None = None


class Train(Section):
    """How long, how much at once, in which precision, and what is written down."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="images of one optimizer step")
    accumulate: int = Field(1, gt=0, description="parts that a batch is split into to save memory")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the products; bfloat16 is faster, also on a CPU with instructions for it",
    )
    compile: bool = Field(False, description="torch.compile the networks")
    gradient_checkpointing: bool = Field(
        False,
        description="keep activations between the backbone's blocks only, and compute the rest again",
    )
    channels_last: bool = Field(
        False, description="weights with the channel last in memory: faster for most ConvNets on a GPU"
    )
    log_every: int = Field(10, gt=0, description="steps between two rows")
    on_collapse: Literal["warn", "stop"] = "warn"


class Spec(BaseModel):
    """One experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    beside: ClassVar[tuple[str, ...]] = ("extends",)  # keys of a file that are none of the spec

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run's folder")
    seed: int = Field(0, ge=0, lt=2**32)
    data: Params
    augment: Params
    backbone: Params
    head: Params
    predictor: Params | None = None
    teacher: Params
    targets: Params
    loss: Params
    regularizers: tuple[Params, ...] = ()
    optim: Annotated[AdamW | Sgd | Lars, Field(discriminator="name")]
    train: Train
    evaluators: tuple[Params, ...] = ()

    def dump(self) -> dict[str, object]:
        """Plain data with every default written out; what is written to disk."""
        return self.model_dump(mode="json", serialize_as_any=True)

    @property
    def hash(self) -> str:
        """12 hex digits that name what decides the weights; see `dino_lab.spec.identity`."""
        from dino_lab.spec.identity import identity_of

        return identity_of(self).hash
