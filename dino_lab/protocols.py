"""The contract of each kind of component, and its optional abilities. Shape letters: see types.py.

`__init__` lists what the builder supplies; a component adds its own parameters after a `*`, and those are
what YAML may set. The registry refuses a class whose `__init__` or methods take other arguments.

An ability is a contract that extends the one of its kind. A component has it if it has all of its methods and
attributes, None not counted; it is declared nowhere else. The registry refuses a class whose method of such
a name takes other arguments, and records the abilities of a class in `Entry.abilities`. An attribute that
only `__init__` sets is recorded if the class declares it (`last_layer: nn.Module`), and so is a method that
`__getattr__` forwards (`tokens: Callable[[Tensor], Tensor]`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cache
from types import FunctionType, new_class
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from dino_lab.evaluation.outputs import MaskedImages, Representation, Split
from dino_lab.imaging.report import DataReport
from dino_lab.network import Network
from dino_lab.registry.kinds import KIND_OF_FIELD
from dino_lab.types import BackboneOutput, Images, Output, Views

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------- data


class Data(Protocol):
    """Labelled images, uint8 [B, C, H, W] with labels int64 [B], on `device`."""

    classes: int  # labels are 0 .. classes - 1
    size: int  # H = W of every image
    channels: int
    train_images: int  # 0 where there is no training split: such data are to evaluate on only
    test_images: int
    mean: tuple[float, ...]  # per channel, of images in 0..1: what Network subtracts
    std: tuple[float, ...]

    def __init__(self, device: torch.device) -> None: ...
    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Images, Tensor]]:
        """Batches from step `start` on, without end: every epoch a new order, decided by (seed, epoch) alone;
        an incomplete last batch is dropped.
        """
        ...

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split once, in order."""
        ...

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training split once, in order, unaugmented: what evaluators compare with."""
        ...


class SharedData(Data, Protocol):
    """Data that runs with the same parameters share, if they are resident.

    The images depend on the parameters alone, not on the run's seed, and never change.
    """

    @property
    def resident(self) -> bool:
        """Whether all images are in memory."""
        ...

    def to(self, device: torch.device) -> Data:
        """The same images for another device."""
        ...


class GivesShares(Data, Protocol):
    """Data that read only the images of a batch that are asked for, where several processes divide it."""

    def train_share(
        self, batch_size: int, seed: int, start: int, images: slice
    ) -> Iterator[tuple[Images, Tensor]]:
        """Of each batch that `train` gives, its `images` alone."""
        ...


class HasClassNames(Data, Protocol):
    """Data whose classes have names, for tables and pictures; classes are numbered otherwise."""

    class_names: tuple[str, ...]  # one for each class, in the order of the labels


class GivesAnnotations(Data, Protocol):
    """Images with masks and boxes of what is in them."""

    def annotated(self, split: Literal["train", "test"], indices: Tensor) -> tuple[Tensor, ...]:
        """Some images of a split by their indices, int64 [N], on the CPU.

        Returns images uint8 [N, C, H, W]; labels int64 [N]; masks of the objects bool [N, H, W]; parts uint8
        [N, H, W], 0 background, 1, 2, ... the parts; boxes int64 [N, 4], x0 y0 x1 y1, the last two exclusive.
        """
        ...


class GivesSegments(Data, Protocol):
    """Annotated images of several objects. Without it the mask is one object, of the image's label."""

    def segmented(self, split: Literal["train", "test"], indices: Tensor) -> tuple[Tensor, Tensor]:
        """The objects of some images of a split by their indices, int64 [N], on the CPU.

        Returns objects uint8 [N, H, W], numbered 1, 2, ... in each image; their classes uint8 [N, H, W], as
        label + 1. In both 0 is background and 255 void.
        """
        ...


class GivesLabels(Data, Protocol):
    """Data whose labels are known without its images."""

    def labels(self, split: Literal["train", "test"]) -> Tensor:
        """Labels int64 [N] of a split, on the CPU; none where there is no such split."""
        ...


class MayLackLabels(Data, Protocol):
    """Data that may be images alone, all of class 0; evaluators that compare labels are then left out."""

    labelled: bool


class MayGiveWhole(Data, Protocol):
    """Data whose `train` may give `WholeImages`, each of its own size, in place of uint8 [B, C, H, W].

    `test` and `bank` give squares of `size` all the same.
    """

    whole: bool  # whether it does


class GivesFingerprint(Data, Protocol):
    """Data whose parameters do not name files that can be looked at, such as URLs."""

    def fingerprint(self) -> str:
        """A text that is another where the data are others; a copy has the same. Nothing is read for it."""
        ...


class GivesReport(Data, Protocol):
    """Data that may pass over some of what it was given, and reports it."""

    def found(self) -> DataReport:
        """Images and classes of each split, what was passed over and why, and other notes."""
        ...


# ------------------------------------------------------------------------------------------------- augment


class Augment(Protocol):
    """Images uint8 [B, C, H, W] to crops of them, on the images' device.

    Data may also give `WholeImages`, each of its own size; an augmentation that does not take them is refused
    with such data before anything starts. Every random number comes from `generator`, which lives on the CPU,
    so that the crops of a step can be made again, and are the same on every device but for rounding.
    """

    pairs: Tensor  # [S, T] int8, on the CPU until the module is moved (a buffer)
    groups: tuple[tuple[int, int], ...]  # (views, pixels) of each entry of Views.crops

    def __init__(self) -> None: ...
    def forward(self, images: Images, generator: torch.Generator) -> Views: ...


class CropsShares(Augment, Protocol):
    """An augmentation that makes the crops of some images of a batch without seeing the others."""

    def forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """What `forward` makes of a batch of `batch` images, for those that are given alone.

        `images` stand side by side in the batch, from position `first` on.
        """
        ...


# ----------------------------------------------------------------------------------------------- operation


class Operation(Protocol):
    """A random change of crops, as Kornia has it: a subclass of kornia.augmentation's `AugmentationBase2D`.

    `pixels` is the side of the group's crops. Every random number is drawn in `forward_parameters`
    from torch's global generator on the CPU, whose state is then that of the run's own; `forward` draws none.
    Crops are float32 [N, C, H, W] in 0..1; before an operation that cuts them they are whole images.
    """

    p: float  # probability that it happens to a crop, drawn by Kornia

    def __init__(self, pixels: int) -> None: ...
    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Parameters for each of the N crops of shape (N, C, H, W); `batch_prob` says which are changed."""
        ...

    def forward(self, input: Tensor, params: dict[str, Tensor] | None = None, **kwargs: Any) -> Tensor:
        """Crops [N, C, H, W] changed by `params`, or by new ones."""
        ...


class Fuses(Operation, Protocol):
    """An operation that the crops' own kernels compute together with others, in one pass.

    Its `generate_parameters` gives fields of `kernels.crops.sampled.SampledParameters`. Only those of this
    package are asked.
    """

    step: str  # of the pass: crop, flip, rotate, jitter, grey, blur, solarize


# ------------------------------------------------------------------------------------------------ backbone


class Backbone(Protocol):
    """Normalised images [N, C, H, W] to features [N, D]; several sizes are allowed.

    `channels` is that of the images, `size` the height and width of the largest crop.
    """

    dim: int  # D

    def __init__(self, channels: int, size: int) -> None: ...
    def forward(self, images: Tensor) -> Tensor: ...


class GivesTokens(Backbone, Protocol):
    """A backbone with patch tokens, or a last feature map."""

    def tokens(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D, h, w]; a UserError where this model has none."""
        ...


class GivesAttention(Backbone, Protocol):
    """A backbone with attention from its CLS token."""

    def attention(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, heads, h, w]: the last block, from CLS to the patches, each head of an image
        summing to at most 1; a UserError where this model has none.
        """
        ...


class GivesOutputs(Backbone, Protocol):
    """A backbone that gives all of its outputs in one forward."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        """Features, the CLS token of the last `blocks` blocks, tokens and attention of [N, C, H, W]; None for
        what this model does not have. With `blocks` 0, in training, only features and tokens are read.
        """
        ...


class ChecksSize(Backbone, Protocol):
    """A backbone that refuses images of some sizes."""

    def check_size(self, size: int) -> None:
        """ValueError where it does not take images of `size` x `size` pixels."""
        ...


class JoinsSizes(Backbone, Protocol):
    """A backbone that computes crops of several sizes at once, where launches take time: not on a CPU."""

    def features_of_sizes(self, images: Sequence[Tensor]) -> Tensor:
        """Images of several sizes, each [N, C, H, W], to the features [M, D] of all M of them, in order; what
        `forward` gives of each size, up to rounding and random numbers.
        """
        ...


class CheckpointsGradients(Backbone, Protocol):
    """A backbone for `train.gradient_checkpointing`."""

    def checkpoint_gradients(self) -> None:
        """Keep only the activations between blocks, from now on; ValueError where this model cannot."""
        ...


class GivesTimmModel(Backbone, Protocol):
    """A backbone that is a model of timm inside, so that its weights are exported for timm."""

    def as_timm(self) -> tuple[nn.Module, str]:
        """The model, and a Python expression that builds one of the same shape."""
        ...


class GivesTimmConfig(Backbone, Protocol):
    """A backbone that timm.create_model builds from a configuration file."""

    def timm_config(self) -> tuple[str, dict[str, Any]]:
        """Timm's name of the architecture, and the arguments of timm.create_model, as JSON; a UserError where
        these cannot describe this model.
        """
        ...


# ---------------------------------------------------------------------------------------------------- head


class Head(Protocol):
    """Features [N, in_dim] to [N, K]; also used as predictor, K to K."""

    dim: int  # K

    def __init__(self, in_dim: int) -> None: ...
    def forward(self, features: Tensor) -> Tensor: ...


class HasLastLayer(Head, Protocol):
    """A head with a last layer that `optim.freeze_last_layer` freezes at the start of a run."""

    last_layer: nn.Module


# ------------------------------------------------------------------------------------------------- teacher


class Teacher(Protocol):
    """What the student should agree with, [T, B, K], for the views in crops[0]."""

    network: Network | None  # to evaluate; None if there is no network but the student

    def __init__(self, student: Network) -> None: ...
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor: ...
    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Called after each optimizer step; `ends_epoch` after the last one of an epoch."""
        ...


class ChecksClasses(Teacher, Protocol):
    """A teacher that refuses data with too many classes."""

    def check_classes(self, classes: int) -> None:
        """ValueError where it cannot teach so many classes."""
        ...


class GivesAnswer(Teacher, Protocol):
    """A teacher whose targets depend on its network's output alone.

    The networks of several runs are then computed at once.
    """

    def answer(self, output: Output) -> Tensor:
        """What `forward` makes of the network's output for crops[0], [T, B, K]."""
        ...


class GivesTokenTargets(Teacher, Protocol):
    """A teacher for `token_loss`, which gives patch tokens beside its outputs."""

    def forward_tokens(self, views: Views, student: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and tokens [T, B, K', h, w] of the same views; h and w may be any."""
        ...


# ------------------------------------------------------------------------------------------------- targets


class Targets(Protocol):
    """The teacher's output [T, B, K] made into a target of the same shape."""

    distribution: bool  # each row of the target sums to 1, so that its entropy means something

    def __init__(self, dim: int) -> None: ...
    def forward(self, teacher: Tensor, progress: float) -> Tensor: ...


# ---------------------------------------------------------------------------------------------------- loss


class Loss(Protocol):
    """Student [S, B, K], target [T, B, K] and pairs [S, T] to a scalar."""

    negatives: bool  # understands -1 pairs
    cross_entropy: bool  # the value is H(target, student), so that less the target's entropy it is a KL

    def __init__(self, dim: int) -> None: ...
    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor: ...


class GivesMeasures(Loss, Protocol):
    """A loss with further numbers for a row, such as an accuracy."""

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """Scalars by name, from the arguments of `forward`; called before it, and changes nothing."""
        ...


class ChecksPairs(Loss, Protocol):
    """A loss that learns nothing from some pairs."""

    def check_pairs(self, pairs: Tensor) -> None:
        """ValueError where pairs [S, T] give nothing to learn."""
        ...


# --------------------------------------------------------------------------------------------- regularizer


class Regularizer(Protocol):
    """The student's output for its views, in any precision, to a scalar that is added times `weight`."""

    weight: float

    def __init__(self) -> None: ...
    def forward(self, views: Views, student: Output) -> Tensor: ...


# ----------------------------------------------------------------------------------------------- evaluator


class FeatureExtractor(Protocol):
    """A frozen network as an evaluator is given it: images uint8 [B, C, H, W] to float32 features [B, D].

    Images may be of any size and on any device. No gradient flows, and the network is in evaluation mode. The
    results of `split`, `annotated` and `once` are kept, for all evaluators of one pass.
    """

    @property
    def network(self) -> Network:
        """The network, to be read only."""
        ...

    @property
    def size(self) -> int:
        """Height and width in pixels at which the network sees images: that of the teacher's crops."""
        ...

    def __call__(self, images: Tensor) -> Tensor: ...
    def ask(self, capability: str, images: Tensor) -> Tensor:
        """What the backbone's method of that name returns, such as `tokens`, in float32; a UserError where
        it has none.
        """
        ...

    def outputs(self, images: Tensor) -> BackboneOutput:
        """Features, blocks, tokens and attention, as far as the backbone has them."""
        ...

    def at(self, pixels: int | None, channels: int) -> FeatureExtractor:
        """The same network at another image size, or with None at its own; a UserError where the backbone
        refuses it, which is tried with an empty image of so many channels.
        """
        ...

    def unresized(self) -> FeatureExtractor:
        """The same network without resizing, for images of any height and width that the backbone takes."""
        ...

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, which is called once for all that ask with the same key."""
        ...

    def split(self, data: Any, name: Literal["bank", "test"]) -> Split:
        """Labels and representations of the training (`bank`) or test split; a UserError where they are not
        finite, or the backbone does not give one of them.
        """
        ...

    def annotated(self, data: Any, count: int | None) -> MaskedImages:
        """The first `count` annotated test images, or with None all, and the backbone's outputs for them; a
        UserError where there are fewer.
        """
        ...


class Evaluator(Protocol):
    """Scores of frozen features, by name; the names are prefixed with the evaluator's."""

    every: int  # epochs between two evaluations
    of: Literal["teacher", "student"]  # whose features; the student's where the teacher has no network
    protocol: str  # name/version and every constant, in one line

    def __init__(self) -> None: ...
    def forward(self, encode: FeatureExtractor, data: Data) -> dict[str, float]: ...


class NeedsAbilities(Evaluator, Protocol):
    """An evaluator that works only with components that have certain abilities."""

    @property
    def needs(self) -> tuple[type | str, ...]:
        """Ability classes, such as `GivesTokens`; a spec whose components lack one is refused.

        A name, such as `backbone.tokens`, is the older spelling.
        """
        ...


class NeedsRepresentations(Evaluator, Protocol):
    """An evaluator that asks `encode.split` for more than features."""

    @property
    def wants(self) -> tuple[Representation, ...]:
        """Those that it reads: `blocks`, `mean_tokens`, `gem_tokens`; `features` are always there."""
        ...


class ComparesLabels(Evaluator, Protocol):
    """An evaluator whose score is decided by the labels where these are all the same, which is refused."""

    @property
    def compares_labels(self) -> tuple[Literal["train", "test"], ...]:
        """The splits whose labels it compares; of two, they must have a class in common."""
        ...


class GivesFiles(Evaluator, Protocol):
    """An evaluator that writes files, such as pictures, into the run's folder."""

    def files(self, encode: FeatureExtractor, data: Data) -> dict[str, bytes]:
        """Names and contents; called after `forward`."""
        ...


class GivesFloors(Evaluator, Protocol):
    """An evaluator that says what its scores are without learning."""

    def floors(self, pixels: FeatureExtractor, data: Data) -> dict[str, dict[str, float]]:
        """The floors of each score by name, such as `chance`; a score that has none may be left out.

        `pixels` is no network: its features are an image's pixels less those of the mean training image, of
        at most 32 x 32. Called after `forward` has scored a network, once for the same data and `protocol`.
        """
        ...


# -------------------------------------------------------------------------------------------------- tables

PROTOCOLS: dict[str, type] = {
    "data": Data,
    "augment": Augment,
    "operation": Operation,
    "backbone": Backbone,
    "head": Head,
    "teacher": Teacher,
    "targets": Targets,
    "loss": Loss,
    "regularizer": Regularizer,
    "evaluator": Evaluator,
}
ABILITIES: dict[str, tuple[type, ...]] = {
    "data": (
        SharedData,
        GivesShares,
        HasClassNames,
        GivesAnnotations,
        GivesSegments,
        GivesLabels,
        MayLackLabels,
        MayGiveWhole,
        GivesFingerprint,
        GivesReport,
    ),
    "augment": (CropsShares,),
    "operation": (Fuses,),
    "backbone": (
        GivesTokens,
        GivesAttention,
        GivesOutputs,
        ChecksSize,
        JoinsSizes,
        CheckpointsGradients,
        GivesTimmModel,
        GivesTimmConfig,
    ),
    "head": (HasLastLayer,),
    "teacher": (ChecksClasses, GivesAnswer, GivesTokenTargets),
    "targets": (),
    "loss": (GivesMeasures, ChecksPairs),
    "regularizer": (),
    "evaluator": (NeedsAbilities, NeedsRepresentations, ComparesLabels, GivesFiles, GivesFloors),
}


FORMER_NAMES = {"backbone": {"look": "outputs"}}  # of methods, by kind: plugins may still use them


def kind_of(protocol: type) -> str:
    """The kind of component that an ability belongs to; a TypeError where it extends no contract."""
    for kind, contract in PROTOCOLS.items():
        if contract in protocol.__mro__[1:]:
            return kind
    raise TypeError(f"{protocol.__qualname__}: an ability extends the contract of a kind, such as Backbone")


@cache
def members(protocol: type) -> dict[str, FunctionType | None]:
    """What an ability adds to the contract of its kind: methods by name, and None for each attribute."""
    contract = PROTOCOLS[kind_of(protocol)]
    added = reversed(protocol.__mro__[: protocol.__mro__.index(contract)])
    found = {
        name: value for cls in added for name, value in (inspect.get_annotations(cls) | vars(cls)).items()
    }
    return {
        name: value if isinstance(value, FunctionType) else None
        for name, value in found.items()
        if not name.startswith("_")
    }


def ability(component: object, protocol: Callable[..., T]) -> T | None:
    """The component, typed as one that has an ability, or None where it does not have it.

    `protocol` is the ability's class. Attributes of the instance count, and those that `__getattr__` finds. A
    backbone may call a submodule `attention` or `tokens`, which does not make it a method.
    """
    assert isinstance(protocol, type), "a Callable only because mypy takes no Protocol for type[T]"
    for name, contract in members(protocol).items():
        found = getattr(component, name, None) if contract is None else method(component, name)
        if found is None:
            return None
    return cast(T, component)


def method(component: object, name: str) -> Callable[..., Any] | None:
    """The method of that name, or None where there is none; a submodule is no method."""
    found = getattr(component, name, None)
    return found if callable(found) and not isinstance(found, nn.Module) else None


def class_names(data: Data) -> tuple[str, ...]:
    """The names of the classes, or their numbers."""
    named = ability(data, HasClassNames)
    return tuple(map(str, named.class_names if named is not None else range(data.classes)))


def needs_of(evaluator: Evaluator) -> list[tuple[str, type]]:
    """The abilities that an evaluator needs, each with the field of a spec whose component should have it.

    A TypeError where one is neither an ability's class nor a name such as `backbone.tokens`.
    """
    stated = ability(evaluator, NeedsAbilities)
    return [] if stated is None else abilities_in(stated.needs)


def representations_of(evaluator: Evaluator) -> frozenset[Representation]:
    """The representations that an evaluator reads beside features."""
    reads = ability(evaluator, NeedsRepresentations)
    return frozenset(() if reads is None else reads.wants)


def abilities_in(needs: Iterable[type | str]) -> list[tuple[str, type]]:
    """Each of `needs`, as `needs_of` gives them."""
    return [_need(need) for need in needs]


def _need(need: type | str) -> tuple[str, type]:
    if isinstance(need, type):
        return kind_of(need), need
    field, _, name = need.partition(".")
    if field not in KIND_OF_FIELD or not name.isidentifier():
        raise TypeError(f"{need!r} is no ability; an evaluator needs classes such as GivesTokens")
    return field, _named(KIND_OF_FIELD[field], name)


@cache
def _named(kind: str, name: str) -> type:
    """The ability that has a method or attribute of that name; one of its own where none of ours has."""
    name = FORMER_NAMES.get(kind, {}).get(name, name)
    known = (protocol for protocol in ABILITIES[kind] if name in members(protocol))
    bases = (PROTOCOLS[kind], Protocol)
    return next(known, None) or new_class(name, bases, exec_body=lambda space: space.update({name: ...}))
