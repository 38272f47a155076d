"""Embedded data: coloured objects made of parts, in natural-looking places."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.data._backgrounds import OF_BACKGROUND, Backgrounds
from dino_lab.components.data._drawing import BATCH, Drawn, uniforms
from dino_lab.components.data._objects import CLASSES
from dino_lab.components.data._render import OF_BLOB, OF_FRAME, OF_OBJECT, Frame, draw_blob, draw_object
from dino_lab.components.data._storage import Resident, Split
from dino_lab.registry import register

_OBJECTS, _GRAIN, _PLACES, _OF_SCENE = range(4)  # streams of the hash
_RADIUS = (0.48, 0.8)  # of an object, in half images
_GREY = 0.48  # of a place without clutter
_IN_SCENE = 6  # objects of a scene at most, each but the one in front there in two of three
_SCENE_RADIUS, _SCENE_SHIFT = (0.22, 0.4), 0.85


@register("data", "shapes")
class Shapes(Drawn):
    """Drawn objects of several parts and materials, in colour, on pieces of textures that all images share.

    An image shows pieces of three of `backgrounds` textures (foliage, sand, water, ...), some coloured blobs,
    and in front of them an object. Its class says which parts it has, of what shape and pattern, and where.
    Colours, light and dark, size, place, rotation and proportions are drawn alike for all classes. Textures
    and paints are about equally light, so that without colour a background says nothing of which image it is.
    `clutter` is how strong textures and blobs are. An image depends on (seed, split, index) alone; its label
    is index % classes.

    `layout: scene` changes what training sees, and nothing else: images without a subject, of up to six small
    objects of any classes, which lie anywhere and hide one another. Evaluators see the same images of one
    object each, as bank and as test split, so that two runs differ in the way pictures were taken alone. The
    label of a scene is the class of the object in front; only training with labels uses it.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        layout: Annotated[
            Literal["object", "scene"],
            Field(description="what training sees: one large object in an image, or several small ones"),
        ] = "object",
        size: Annotated[int, Field(ge=16, description="side of the images, in pixels")] = 32,
        classes: Annotated[int, Field(ge=2, le=len(CLASSES), description="kinds of objects")] = 10,
        train_images: Annotated[int, Field(gt=0, description="images of the training split")] = 4000,
        test_images: Annotated[int, Field(gt=0, description="images of the test split")] = 1000,
        seed: Annotated[int, Field(ge=0, lt=2**28, description="of everything that is drawn")] = 0,
        max_shift: Annotated[
            float, Field(ge=0, le=0.5, description="furthest an object is from the middle, in half images")
        ] = 0.5,
        max_rotation: Annotated[
            float, Field(ge=0, le=math.pi, description="largest rotation to either side, in radians")
        ] = 3.14,
        jitter: Annotated[
            float, Field(ge=0, le=0.2, description="furthest a part moves in its object, in object radii")
        ] = 0.06,
        blobs: Annotated[
            int, Field(ge=0, le=20, description="small coloured shapes behind the objects, at most")
        ] = 4,
        clutter: Annotated[
            float, Field(ge=0, le=1, description="strength of textures and blobs; 1: as strong as objects")
        ] = 0.4,
        noise: Annotated[
            float, Field(ge=0, le=1, description="range of the noise of single pixels, which range over 1")
        ] = 0.12,
        backgrounds: Annotated[
            int, Field(gt=0, description="number of textures, which all images share")
        ] = 16,
    ) -> None:
        self.size, self.seed = size, seed
        self._names = tuple(CLASSES)[:classes]
        self.max_shift, self.max_rotation, self.jitter = max_shift, max_rotation, jitter
        self.blobs, self.clutter, self.noise = blobs, clutter, noise
        self._backgrounds = Backgrounds(seed, backgrounds, size)
        train, test = self._split("train", train_images, device), self._split("test", test_images, device)
        shown = None
        if layout == "scene":
            shown = Resident(self.scenes(torch.arange(train_images)).to(device), train.labels)
            self.notes = ("training sees scenes of several objects; evaluators see images of one object",)
        super().__init__(train, test, self._names, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), shown)

    def scenes(self, indices: Tensor) -> Tensor:
        """Scenes of the training split uint8 [N, 3, H, W], on the CPU, for int64 indices [N] of any size."""
        return torch.cat([self._draw_scenes(some) for some in indices.cpu().split(BATCH)])

    def _draw(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, labels = int(split == "test"), indices % len(self._names)
        random = uniforms(self.seed, key, indices, OF_FRAME + OF_OBJECT, _OBJECTS)
        canvas = self._place(key, indices)
        parts = torch.zeros(len(indices), self.size, self.size, dtype=torch.uint8)
        self._put(canvas, parts, labels, random, self.max_shift, _RADIUS)
        return self._developed(canvas, key, indices), labels, parts

    def _draw_scenes(self, indices: Tensor) -> Tensor:
        random = uniforms(self.seed, 0, indices, _IN_SCENE * (2 + OF_FRAME + OF_OBJECT), _OF_SCENE)
        canvas = self._place(0, indices)
        parts = torch.empty(len(indices), self.size, self.size, dtype=torch.uint8)
        *behind, front = random.split(2 + OF_FRAME + OF_OBJECT, 1)
        for own in behind:
            kinds = torch.where(own[:, 0] < 2 / 3, (own[:, 1] * len(self._names)).long(), -1)
            self._put(canvas, parts, kinds, own[:, 2:], _SCENE_SHIFT, _SCENE_RADIUS)
        labels = indices % len(self._names)
        self._put(canvas, parts, labels, front[:, 2:], _SCENE_SHIFT, _SCENE_RADIUS)
        return self._developed(canvas, 0, indices)

    def _place(self, key: int, indices: Tensor) -> Tensor:
        """Backgrounds with blobs [N, 3, H, W]."""
        random = uniforms(self.seed, key, indices, OF_BACKGROUND + OF_BLOB * self.blobs, _PLACES)
        canvas = self._backgrounds.draw(random[:, :OF_BACKGROUND])
        for kind in range(self.blobs):
            canvas = draw_blob(canvas, kind, random[:, OF_BACKGROUND + OF_BLOB * kind :][:, :OF_BLOB])
        return _GREY + self.clutter * (canvas - _GREY)

    def _put(
        self,
        canvas: Tensor,
        parts: Tensor,
        kinds: Tensor,
        random: Tensor,
        shift: float,
        radius: tuple[float, float],
    ) -> None:
        """Draw onto canvas [N, 3, H, W] an object of its kind [N] in front of each; none of kind -1."""
        for kind, name in enumerate(self._names):
            rows = (kinds == kind).nonzero()[:, 0]
            if not len(rows):
                continue
            where, what = random[rows].split([OF_FRAME, OF_OBJECT], 1)
            frame = Frame.of(
                self.size, where, shift=shift, rotation=self.max_rotation, radius=radius, mirror=True
            )
            its = parts[rows]
            canvas[rows] = draw_object(canvas[rows], its, name, frame, what, self.jitter)
            parts[rows] = its

    def _developed(self, canvas: Tensor, key: int, indices: Tensor) -> Tensor:
        """Images uint8 from canvas [N, 3, H, W], with grain."""
        random = uniforms(self.seed, key, indices, self.size**2, _GRAIN)
        grain = self.noise * (random.view_as(canvas[:, :1]) - 0.5)
        return ((canvas + grain).clamp(0, 1) * 255).round().to(torch.uint8)
