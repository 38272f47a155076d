"""The networks of a run's folder, opened again: no more is built and read than is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.building.components import make_component, make_method, misfits
from dino_lab.building.execution import arrange, autocast
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network, evaluation_mode
from dino_lab.protocols import Augment, Data
from dino_lab.registry import Registry
from dino_lab.runs.checkpoint import Checkpoint, folder_of_run, read_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.spec.model import Spec

CPU = torch.device("cpu")


class SavedRun:
    """A run's folder with what lies in it, read as it is asked for.

    `warning` says where the last checkpoint is damaged and the one before is used.
    """

    def __init__(
        self,
        folder: RunFolder,
        spec: Spec,
        checkpoint: Checkpoint | None,
        registry: Registry,
        device: torch.device,
        data: Data | None = None,
        evaluation_data: Data | None = None,
    ) -> None:
        self.folder, self.spec, self.registry, self.device = folder, spec, registry, device
        self._given_data, self._given_evaluation_data = data, evaluation_data
        self._checkpoint = checkpoint
        self._networks: dict[tuple[bool, bool], Network] = {}

    @property
    def warning(self) -> str:
        """What is wrong with the last checkpoint, or nothing."""
        return self._checkpoint.warning if self._checkpoint is not None else ""

    @property
    def step(self) -> int:
        """Optimizer steps of the networks: 0 for first weights."""
        return self._checkpoint.step if self._checkpoint is not None else 0

    @cached_property
    def data(self) -> Data:
        """The data of the spec, to train on."""
        if self._given_data is not None:
            return self._given_data
        data: Data = make_component(self.spec, self.registry, self.device, "data", self.device)
        return data

    @cached_property
    def evaluation_data(self) -> Data:
        """The data that evaluators see: the same, unless the spec has `evaluate_on`."""
        if self._given_evaluation_data is not None:
            return self._given_evaluation_data
        if self.spec.evaluate_on is None:
            return self.data
        data: Data = make_component(self.spec, self.registry, self.device, "evaluate_on", self.device)
        return data

    @cached_property
    def augment(self) -> Augment:
        """The augmentation of the spec."""
        with self.device:  # also while a spec is checked, without memory, that uses this run
            augment: Augment = make_component(self.spec, self.registry, self.device, "augment")
        return augment

    @property
    def channels(self) -> int:
        """Channels of the images that the networks take."""
        recorded = self.folder.recorded_data()
        if self._checkpoint is None or (recorded is not None and "channels" in recorded):
            return int(recorded["channels"]) if recorded is not None else self.data.channels
        return int(self._state("student")["mean"].numel())

    @property
    def size(self) -> int:
        """Pixels of a side of the teacher's crops, which is what evaluators show to the networks."""
        return self.augment.groups[0][1]

    def teacher_has_network(self) -> bool:
        """Whether the teacher has a network of its own; else the student's is taken for it."""
        if self._checkpoint is None:
            return self._first_networks[1] is not None
        return any(key.startswith("network.") for key in self._state("teacher"))

    def backbone(self, of: str) -> Network:
        """The backbone of the `teacher` or the `student` with its normalisation, without a head."""
        return self._network(of, with_head=False)

    def network(self, of: str) -> Network:
        """The same with the head, without a predictor."""
        return self._network(of, with_head=True)

    @contextmanager
    def encoder(self, of: str) -> Iterator[Encoder]:
        """The backbone in evaluation mode, at the size of the teacher's crops."""
        network = self.backbone(of)
        with evaluation_mode(network):
            yield Encoder(network, self.size, self.autocast)

    def autocast(self) -> torch.autocast:
        """The precision of the networks' matrix products, as a context."""
        return autocast(self.device, self.spec.train)

    def _network(self, of: str, *, with_head: bool) -> Network:
        of_teacher = of == "teacher" and self.teacher_has_network()
        key = (of_teacher, with_head)
        if key not in self._networks:
            self._networks[key] = (
                self._first_network(of_teacher)
                if self._checkpoint is None
                else self._trained_network(of_teacher, with_head)
            )
        return self._networks[key]

    @cached_property
    def _first_networks(self) -> tuple[Network, Network | None]:
        """Student and teacher's network before the first step, for which the data are read."""
        data = self.data
        method = make_method(
            self.spec,
            self.registry,
            self.device,
            self.augment,
            channels=data.channels,
            mean=data.mean,
            std=data.std,
        )
        for network in filter(None, (method.student, method.teacher.network)):
            arrange(network, self.spec.train, self.device)
        return method.student, method.teacher.network

    def _first_network(self, of_teacher: bool) -> Network:
        student, teacher = self._first_networks
        return teacher if of_teacher and teacher is not None else student

    def _trained_network(self, of_teacher: bool, with_head: bool) -> Network:
        weights = self._weights(of_teacher, with_head)
        network = _built(self, weights, with_head)
        _compare(network, weights, self.folder.path)
        if not network.mean.is_meta:  # as it is while a spec is checked
            network.load_state_dict(weights)
            network = network.to(self.device)
        arrange(network, self.spec.train, self.device)
        return network.requires_grad_(False)

    def _weights(self, of_teacher: bool, with_head: bool) -> dict[str, Tensor]:
        state, prefix = self._state("teacher" if of_teacher else "student"), "network." if of_teacher else ""
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        wanted = ("backbone.", "mean", "std", *(["head."] if with_head else []))
        return {key: value for key, value in found.items() if key.startswith(wanted)}

    def _state(self, part: str) -> dict[str, Tensor]:
        assert self._checkpoint is not None
        state: Any = self._checkpoint.state.get(part)
        if not isinstance(state, dict):
            raise UserError(f"{self.folder.path}: its checkpoint has no {part}; it is not that of a run")
        return state


def open_run(
    path: Path,
    registry: Registry,
    device: torch.device = CPU,
    *,
    spec: Spec | None = None,
    untrained: bool = False,
    data: Data | None = None,
    evaluation_data: Data | None = None,
) -> SavedRun:
    """The run of a folder, or of a checkpoint in it; a UserError where there is none, or no whole checkpoint.

    `untrained` gives the first weights; `spec` stands in for the folder's own, with other data say; `data` is
    what the spec's data part would give, where it is in memory already, and so is `evaluation_data`.
    """
    folder = RunFolder(folder_of_run(path))
    spec = spec or folder.spec(registry)
    checkpoint = None if untrained else read_checkpoint(path, folder.hash, CPU, mapped=True)
    return SavedRun(folder, spec, checkpoint, registry, device, data, evaluation_data)


def _built(run: SavedRun, weights: dict[str, Tensor], with_head: bool) -> Network:
    """A network as the run built it, with the normalisation of its weights."""
    if "mean" not in weights or "std" not in weights:
        raise UserError(f"{run.folder.path}: its checkpoint has no weights of such a network")
    mean, std = (tuple(weights[key].flatten().tolist()) for key in ("mean", "std"))
    size = max(pixels for _, pixels in run.augment.groups)
    params = run.spec.backbone
    if "pretrained" in type(params).model_fields:  # its weights come from the checkpoint
        params = params.model_copy(update={"pretrained": False})
    with misfits("backbone"):
        backbone = run.registry.build("backbone", params, run.channels, size)
    head = nn.Identity()
    if with_head:
        with misfits("head"):
            head = run.registry.build("head", run.spec.head, backbone.dim)
    return Network(backbone, head, mean=mean, std=std)


def _compare(network: Network, weights: dict[str, Tensor], path: Path) -> None:
    """A UserError where the weights are not those of such a network."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"{path}: last.pt and spec.yaml do not belong together: {key} is "
                f"{found.get(key, 'missing')} in one, {wanted.get(key, 'missing')} in the other"
            )
