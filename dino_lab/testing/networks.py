"""How backbones and heads are tried."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dino_lab.errors import UserError
from dino_lab.protocols import (
    Backbone,
    ChecksSize,
    GivesAttention,
    GivesOutputs,
    GivesTimmConfig,
    GivesTimmModel,
    GivesTokens,
    HasLastLayer,
    JoinsSizes,
    ability,
)
from dino_lab.testing.tested_component import numbers
from dino_lab.testing.trial import Size, Stateful, same
from dino_lab.types import BackboneOutput


class BackboneTrial(Stateful):
    """Images [N, 3, H, W] to features [N, D], for crops of each size that the method has."""

    sizes: ClassVar = [(2, 0), (3, -1), (5, 0)]  # N, and which of the method's groups of crops

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """Channels and the size of the largest crop."""
        return 3, max(pixels for _, pixels in self.subject.method.augment.groups)

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The features."""
        images = self._images(size).to(device)
        return [self.expect_output(self._call(part, images), (len(images), part.dim), "forward", device)]

    def rules(self) -> None:
        """Gradients, the same answer twice in evaluation mode, and what evaluators may ask for."""
        part, images = self.make(self.sizes[0]), self._images(self.sizes[0])
        self._call(part, images).square().sum().backward()
        expect_gradients(self, [p.grad for p in part.parameters() if p.requires_grad])
        part.eval()
        self.expect(
            same([self._call(part, images)], [self._call(part, images)]),
            "says something else to the same images in evaluation mode; nothing should be random or change "
            "there",
        )
        # A UserError where a backbone has it for some of its models only.
        if (with_tokens := ability(part, GivesTokens)) is not None:
            with suppress(UserError):
                self._check_map(part, "tokens", with_tokens.tokens(images), images)
        if (with_attention := ability(part, GivesAttention)) is not None:
            with suppress(UserError):
                self._check_map(part, "attention", with_attention.attention(images), images)
        if (whole := ability(part, GivesOutputs)) is not None:
            self._check_outputs(whole, images)
        if (joins := ability(part, JoinsSizes)) is not None:
            self._check_joined(joins, images)
        if (timm := ability(part, GivesTimmModel)) is not None:
            self._check_timm(timm)
        if (sizes := ability(part, ChecksSize)) is not None:
            for _, pixels in self.subject.method.augment.groups:
                right = "it should refuse no size that forward takes"
                with self.subject.trying(f"check_size({pixels})", right):
                    sizes.check_size(pixels)

    def _images(self, size: Size) -> Tensor:
        batch, group = size
        pixels = self.subject.method.augment.groups[group][1]
        return numbers(batch, 3, pixels, pixels)

    def _call(self, part: Any, images: Tensor) -> Tensor:
        right = "it should return features [N, D], or the crops should have another size (settings=[...])"
        with self.subject.trying(f"forward of images {list(images.shape)}", right):
            return part(images)

    def _check_map(self, part: Backbone, name: str, found: Tensor, images: Tensor) -> None:
        wanted = f"[{len(images)}, {part.dim if name == 'tokens' else 'heads'}, h, w]"
        fits = found.ndim == 4 and len(found) == len(images)
        fits = fits and (name != "tokens" or found.shape[1] == part.dim)
        self.expect(fits, f"{name} has the shape {list(found.shape)}; it should be {wanted}")
        if name == "attention":
            most = found.sum((2, 3)).max().item()
            self.expect(most <= 1.001, f"attention sums to {most:g}; over all patches it should be at most 1")

    def _check_joined(self, part: JoinsSizes, images: Tensor) -> None:
        with self.subject.trying("features_of_sizes([a, b])", "it should return features [M, D]"):
            joined = part.features_of_sizes([images, images[:1]])
        each = torch.cat([self._call(part, images), self._call(part, images[:1])])
        self.expect(
            joined.shape == each.shape and torch.allclose(joined, each, atol=1e-4),
            "features_of_sizes gives other features than forward; they should be the same",
        )

    def _check_outputs(self, part: GivesOutputs, images: Tensor) -> None:
        with self.subject.trying("outputs(images, 1)", "it should return a BackboneOutput"):
            output = part.outputs(images, 1)
        self.expect(
            isinstance(output, BackboneOutput),
            f"outputs is of the type {type(output).__name__}; it should be a BackboneOutput",
        )
        self.expect(
            torch.allclose(output.features, self._call(part, images), atol=1e-4),
            "outputs has other features than forward; they should be the same",
        )
        if output.blocks is not None:
            shape, right = list(output.blocks.shape), [len(images), 1, part.dim]
            self.expect(
                shape == right, f"outputs has blocks {shape} of the last block; they should be {right}"
            )
        for name, found in (("tokens", output.tokens), ("attention", output.attention)):
            if found is not None:
                self._check_map(part, name, found, images)

    def _check_timm(self, part: GivesTimmModel) -> None:
        import timm

        model, line = part.as_timm()
        right = "it should build a model of timm that takes the weights of the one inside"
        with self.subject.trying(f"as_timm's line {line}", right):
            eval(line, {"timm": timm}).load_state_dict(model.state_dict())
        if (configured := ability(part, GivesTimmConfig)) is None:
            return
        with self.subject.trying("timm_config", right):
            try:
                architecture, arguments = configured.timm_config()
            except UserError:
                return
            arguments = json.loads(json.dumps(arguments))
            timm.create_model(architecture, **arguments).load_state_dict(model.state_dict())


class HeadTrial(Stateful):
    """Features [N, in_dim] to [N, K]."""

    sizes: ClassVar = [(2, 7), (3, 12), (5, 16)]  # N, in_dim

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """The features' width."""
        return size[1:]

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The outputs."""
        return [self._call(part, numbers(*size).to(device))]

    def rules(self) -> None:
        """Gradients, and a last layer that has something to freeze."""
        part, features = self.make(self.sizes[0]), numbers(*self.sizes[0]).requires_grad_()
        self._call(part, features).square().sum().backward()
        expect_gradients(self, [features.grad])
        expect_gradients(self, [p.grad for p in part.parameters() if p.requires_grad])
        if (head := ability(part, HasLastLayer)) is not None:
            self.expect(
                isinstance(head.last_layer, nn.Module) and any(True for _ in head.last_layer.parameters()),
                "its last_layer has no parameters; it should be what optim.freeze_last_layer freezes",
            )

    def _call(self, part: Any, features: Tensor) -> Tensor:
        with self.subject.trying(f"forward of features {list(features.shape)}", "it should return [N, K]"):
            output = part(features)
        return self.expect_output(output, (len(features), part.dim), "forward", features.device)


def expect_gradients(trial: Stateful, gradients: list[Tensor | None]) -> None:
    """Fail unless a gradient arrives, and all that arrive are finite."""
    arrived = [gradient for gradient in gradients if gradient is not None]
    trial.expect(
        any(bool((gradient != 0).any()) for gradient in arrived) or not gradients,
        "lets no gradient through; what it returns should depend on its inputs and parameters",
    )
    trial.expect(
        all(bool(gradient.isfinite().all()) for gradient in arrived),
        "its gradient is not finite; it should be, for inputs of ordinary size",
    )
