"""One experiment, as data: everything that decides the outcome of a run, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

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

    rule: Literal["none", "linear", "sqrt"] = Field(
        "linear", description="factor of the rate: 1, batch_size / reference, or its square root"
    )
    reference: int = Field(256, gt=0, description="batch size that `lr.start` is meant for; DINO: 256")

    def factor(self, batch_size: int) -> float:
        """What the rate is multiplied with."""
        ratio = batch_size / self.reference
        return {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[self.rule]


class Clip(Section):
    """Gradient clipping by L2 norm: of each tensor by itself (DINO) or of all together (DINOv2)."""

    norm: float = Field(3.0, gt=0, description="largest L2 norm of the gradient; DINO: 3")
    per: Literal["tensor", "all"] = Field(
        "tensor", description="what has that norm: each tensor by itself, or all together"
    )


class Optim(Section):
    """What every optimizer has. Biases and 1-D tensors are not decayed."""

    lr: Rate = Field(
        Schedule(start=5e-4, end=1e-6, shape="cosine", warmup=0.1),
        description="learning rate; its start is scaled by `lr_scaling`. DINO: 0.0005",
    )
    lr_scaling: LrScaling = Field(LrScaling(), description="how the start of `lr` grows with the batch")
    weight_decay: Rate = Field(
        Schedule(start=0.04, end=0.4, shape="cosine"),
        description="decay of matrices; biases and norms have none. DINO: 0.04 to 0.4",
    )
    clip: Clip | None = Field(Clip(), description="limit of the gradient's norm; null: none")
    freeze_last_layer: UnitInterval = Field(
        0.0,
        description="share of the run in which the head's last layer has no gradient; DINO: one epoch",
    )
    constant_predictor_lr: bool = Field(
        False, description="the predictor keeps `lr.start` (SimSiam, arXiv 2011.10566, Sec. 4.2)"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the rate from each block to the one below; MAE, fine-tuned: 0.75, DINOv2: 0.9",
    )
    patch_embed_lr: float = Field(
        1.0, ge=0, description="factor of the rate of the patch embedding; DINOv2: 0.2"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="parameters that are not trained, such as backbone.model.blocks.[0-3]; `*` is any text",
    )


class AdamW(Optim):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); rate, decay and clipping are DINO's (Sec. 3.2)."""

    name: Literal["adamw"]
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="beta_1 and beta_2, of the running means of g and of g^2"
    )


class Sgd(Optim):
    """Stochastic gradient descent with momentum; the defaults are SimSiam's (arXiv 2011.10566, Sec. 3)."""

    name: Literal["sgd"]
    momentum: UnitInterval = Field(0.9, description="share of the last update that is kept")
    lr: Rate = Field(
        Schedule(start=0.05, end=0.0, shape="cosine"),
        description="learning rate; its start is scaled by `lr_scaling`. SimSiam: 0.05, MoCo: 0.03",
    )
    weight_decay: Rate = Field(
        constant(1e-4), description="decay of matrices; biases and norms have none. SimSiam: 0.0001"
    )
    clip: Clip | None = Field(None, description="limit of the gradient's norm; null: none")


class Lars(Optim):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888); 1-D tensors take the plain step.

    The defaults are SimCLR's (arXiv 2002.05709, Sec. 2.3), of 100 epochs.
    """

    name: Literal["lars"]
    momentum: UnitInterval = Field(0.9, description="share of the last update that is kept")
    trust_coefficient: float = Field(
        0.001, gt=0, description="eta, length of a step relative to that of the weights"
    )
    lr: Rate = Field(
        Schedule(start=0.3, end=0.0, shape="cosine", warmup=0.1),
        description="learning rate; its start is scaled by `lr_scaling`. SimCLR: 0.3, BYOL: 0.2",
    )
    weight_decay: Rate = Field(
        constant(1e-6),
        description="decay of matrices; biases and norms have none. SimCLR: 0.000001, BYOL: 0.0000015",
    )
    clip: Clip | None = Field(None, description="limit of the gradient's norm; null: none")


class Train(Section):
    """How long, how much at once, in which precision, and what is written down."""

    epochs: int = Field(gt=0, description="passes over the training images")
    batch_size: int = Field(gt=0, description="images of one optimizer step")
    accumulate: int = Field(1, gt=0, description="parts that a batch is split into, to save memory")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of matrix products; tf32 is faster on a GPU, bfloat16 also on a CPU that is made for it",
    )
    compile: bool | Literal["graphs"] = Field(
        False,
        description="true: compile the networks with torch.compile; graphs: and on a GPU replay them as CUDA "
        "graphs, for small networks in one process",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep activations between the backbone's blocks only, and compute the others again",
    )
    channels_last: bool = Field(
        False, description="keep the channel last in memory: faster for most ConvNets on a GPU"
    )
    log_every: int = Field(10, gt=0, description="steps from one row of rows.jsonl to the next")
    keep: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="epochs after which the checkpoint is kept, so that a run can be forked there"
    )
    keep_best: bool = Field(
        False, description="keep the checkpoint of the highest accuracy that evaluators found as best.pt"
    )
    on_collapse: Literal["warn", "stop"] = Field(
        "warn", description="when the outputs collapse: say so, or end the run as well"
    )


_FROM: dict[str, Any] = {  # a keyword of Python, so no class can declare it
    "from": (
        str,
        Field(min_length=1, description="a run's folder, a file or folder of weights, or timm:MODEL"),
    )
}
_From: Any = create_model("_From", __base__=Section, **_FROM)


class Init(_From):
    """Where first weights come from; what is not said to come from there is random."""

    what: Literal["backbone", "student", "all"] = Field(
        "backbone",
        description="backbone: of the file's teacher, for the student; student: that of its student; all: "
        "student and teacher, each from its own",
    )
    head: Literal["new", "kept"] = Field(
        "new",
        description="head and predictor: random, or of the run as well; kept needs a run of this package",
    )
    freeze: UnitInterval = Field(
        0.0,
        description="share of the run in which the backbone has no gradient, so that the head comes first",
    )
    below_start: Literal["warn", "stop"] = Field(
        "warn",
        description="when the score falls below that of the first weights: say so, or end the run as well",
    )

    @property
    def path(self) -> str:
        """What `from` says."""
        return str(getattr(self, "from"))

    @model_validator(mode="after")
    def _keeps_what_is_there(self) -> Self:
        if self.head == "kept" and self.what == "backbone":
            raise ValueError("head: kept goes with what: student or what: all")
        return self


class After(Section):
    """The run whose state a run begins with: it is a stage after that run, or a fork of it."""

    run: str = Field(pattern=r"^[0-9a-f]{12}$", description="hash of that run")
    spec: dict[str, Any] = Field(description="spec of that run, every default written out")
    epoch: int | None = Field(
        None,
        gt=0,
        description="fork: epoch of that run after which this one goes on, steps and schedules with it; "
        "null: a stage, which begins at its end with steps and schedules of its own",
    )

    @model_validator(mode="after")
    def _has_a_whole_spec(self) -> Self:
        name, train, before = (self.spec.get(key) for key in ("name", "train", "after"))
        epochs = train.get("epochs") if isinstance(train, dict) else None
        if not isinstance(name, str) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError("needs the whole spec of that run, with its name and train.epochs")
        if before is not None:
            After.model_validate(before)
        return self

    @property
    def where(self) -> str:
        """The folder of that run below the folder of all runs, `NAME/HASH`."""
        return f"{self.spec.get('name')}/{self.run}"

    @property
    def in_words(self) -> str:
        """`the end of NAME/HASH` of a stage, `epoch 3 of NAME/HASH` of a fork."""
        return f"{'the end' if self.epoch is None else f'epoch {self.epoch}'} of {self.where}"

    @property
    def begins_trained(self) -> bool:
        """Whether the first row has the scores of weights that were trained before: a fork has its run's."""
        if self.epoch is None or self.spec.get("init") is not None:
            return True
        return self.before is not None and self.before.begins_trained

    @property
    def before(self) -> After | None:
        """What that run itself begins with."""
        before = self.spec.get("after")
        return After.model_validate(before) if before is not None else None

    @property
    def epochs_before(self) -> int:
        """Epochs of all stages before this one."""
        earlier = self.before.epochs_before if self.before is not None else 0
        return earlier + (int(self.spec["train"]["epochs"]) if self.epoch is None else 0)


class Spec(BaseModel):
    """One experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    beside: ClassVar[tuple[str, ...]] = ("extends", "stages")  # keys of a file that are none of the spec

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="name of the run's folder",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="of the first weights, the order of the images, and their crops"
    )
    data: Params = Field(description="images to train on and to evaluate on")
    evaluate_on: Params | None = Field(
        None, description="images to evaluate on, where they are others than those of `data`; null: the same"
    )
    augment: Params = Field(description="how crops are made of an image, and which are compared")
    backbone: Params = Field(description="network from crops to features, the one that is kept")
    init: Init | None = Field(None, description="weights that the networks begin with; null: random ones")
    after: After | None = Field(
        None, description="run whose state this one begins with, as `stages` and `dino-lab fork` write it"
    )
    head: Params = Field(description="network from features to the outputs that are compared")
    predictor: Params | None = Field(
        None, description="network behind the student's head alone (BYOL, SimSiam); null: none"
    )
    teacher: Params = Field(description="what the student should agree with")
    targets: Params = Field(description="how the teacher's outputs become targets")
    loss: Params = Field(description="distance of the student's outputs and the targets")
    token_head: Params | None = Field(
        None, description="network from the student's patch tokens to what `token_loss` compares; null: as is"
    )
    token_targets: Params | None = Field(
        None, description="how the teacher's patch tokens become targets; null: they are the targets"
    )
    token_loss: Params | None = Field(
        None, description="distance of the student's patch tokens and the teacher's, added; null: none"
    )
    token_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of `token_loss`")
    regularizers: tuple[Params, ...] = Field((), description="terms that are added to the loss")
    optim: Annotated[AdamW | Sgd | Lars, Field(discriminator="name")] = Field(
        description="optimizer, learning rate and weight decay"
    )
    train: Train = Field(description="length, batch size and precision of the run")
    evaluators: tuple[Params, ...] = Field((), description="scores of the features, computed meanwhile")

    @property
    def epochs_before(self) -> int:
        """Epochs of the stages before this one."""
        return self.after.epochs_before if self.after is not None else 0

    @property
    def begins_trained(self) -> bool:
        """Whether the scores of its first row are those of weights that were trained before."""
        return self.init is not None or (self.after is not None and self.after.begins_trained)

    def dump(self) -> dict[str, object]:
        """Plain data with every default written out; what is written to disk."""
        return self.model_dump(mode="json", serialize_as_any=True)

    @property
    def evaluation_data(self) -> Params:
        """The data that evaluators see."""
        return self.data if self.evaluate_on is None else self.evaluate_on

    @property
    def hash(self) -> str:
        """12 hex digits that name what decides the weights; see `dino_lab.spec.identity`."""
        from dino_lab.spec.identity import identity_of

        return identity_of(self).hash
