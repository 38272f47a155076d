"""Pictures for people: an image, a map or a mask over it, and grids of them, as PNG or for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 160  # pixels of a side of a picture in a grid, at least
MARGIN = 6
TITLE = 16
LEGEND = 40  # pixels: height of the colours of a scale with their numbers
# From cold to hot, evenly spaced: rising in lightness, so that it reads in grey as well.
HEAT = ((8, 6, 40), (70, 18, 105), (150, 40, 100), (220, 80, 60), (250, 160, 40), (252, 250, 170))
HOTTEST = 0.99  # share of all entries that a scale reaches; above is as hot as its top
LEAST_TOP = {"attention": 4.0, "similarity": 0.5}  # so that maps without contrast stay dark
UNITS = {"attention": "times uniform attention", "similarity": "cosine above the least of the image"}


@dataclass(frozen=True)
class HeatScale:
    """The colours of several maps, the same for all: an entry times `factor` from 0 to `top`, in `unit`."""

    factor: float
    top: float
    unit: str

    @classmethod
    def of(cls, maps: Tensor, kind: Literal["attention", "similarity"]) -> HeatScale:
        """The scale of maps [..., h, w] that are shown together.

        Attention is counted in multiples of uniform attention, 1 / (h w); a similarity is a cosine. The top
        is the 99th percentile of all entries, but at least 4 times uniform, or a cosine of 0.5.
        """
        factor = float(maps.shape[-2] * maps.shape[-1]) if kind == "attention" else 1.0
        entries = maps.float().flatten().sort().values
        highest = entries[int(HOTTEST * (len(entries) - 1))].item() * factor
        return cls(factor, max(LEAST_TOP[kind], highest), UNITS[kind])

    def place(self, values: Tensor) -> Tensor:
        """Where entries lie between cold (0) and hot (1)."""
        return (values.float() * self.factor / self.top).clamp(0, 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of the numbers beside the colours."""
        return [(0.0, "0"), *([(1 / self.top, "1")] if self.top > 1 else []), (1.0, f"{self.top:.3g}+")]


def png(image: Image.Image) -> bytes:
    """A picture's PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_address(picture: Image.Image, format_: Literal["PNG", "JPEG"], quality: int = 88) -> str:
    """A picture as an address that holds it, for a page; `quality` is that of a JPEG."""
    buffer = io.BytesIO()
    options = {"optimize": True} if format_ == "PNG" else {"quality": quality}
    picture.save(buffer, format_, **options)
    return address_of(buffer.getvalue(), f"image/{format_.lower()}")


def address_of(content: bytes, mime: str) -> str:
    """A file as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def picture_of(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W]: one channel is grey, of more than three the first three are shown."""
    return Image.fromarray(three_channels(image).cpu().permute(1, 2, 0).contiguous().numpy())


def with_bands(title: str, channels: int) -> str:
    """A title, with the bands that are shown of images that are neither grey nor RGB."""
    match channels:
        case 1 | 3:
            return title
        case 2:
            return f"{title}, band 1 of 2"
    return f"{title}, bands 1-3 of {channels}"


def bytes_of(values: Tensor) -> Tensor:
    """Floats in 0..1 as uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def figure_png(figure: Any, **how: Any) -> bytes:
    """A figure of matplotlib as a PNG file, without the name of the program that wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, **how)
    return buffer.getvalue()


def heat(values: Tensor) -> Tensor:
    """Colours in 0..1, [3, h, w], of a map [h, w]: 0 and below is coldest, 1 and above hottest."""
    place = values.clamp(0, 1) * (len(HEAT) - 1)
    stops = torch.tensor(HEAT, dtype=torch.float32) / 255
    below = place.floor().long().clamp(max=len(HEAT) - 2)
    share = (place - below)[..., None]
    return (stops[below] * (1 - share) + stops[below + 1] * share).movedim(-1, 0)


def overlay(image: Tensor, values: Tensor, scale: HeatScale, side: int = SIDE) -> Image.Image:
    """An image uint8 [C, H, W] under the heat of a map [h, w]; where that is cold, the image shows.

    It is grey, the mean of its channels.
    """
    grey = _enlarged(image.float().mean(0, keepdim=True).expand(3, -1, -1) / 255, side)
    place = F.interpolate(scale.place(values)[None, None], grey.shape[1:], mode="nearest-exact")[0]
    return picture_of(bytes_of(_blended(grey, place)))


def cut_out(image: Tensor, mask: Tensor) -> Image.Image:
    """An image uint8 [C, H, W], dark outside of a mask bool [h, w]."""
    colours = _enlarged(three_channels(image).float() / 255)
    inside = F.interpolate(mask.float()[None, None], colours.shape[1:], mode="nearest")[0]
    return picture_of(bytes_of(colours * (0.2 + 0.8 * inside)))


def plain(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W], as large as the others."""
    return picture_of(bytes_of(_enlarged(three_channels(image).float() / 255)))


def frame(picture: Image.Image, box: Sequence[float], pixels: int, colour: str) -> Image.Image:
    """The picture of an image of `pixels` a side, and a box (x0 y0 x1 y1, the last two exclusive) on it."""
    drawn, scale = picture.copy(), picture.width / pixels
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    ImageDraw.Draw(drawn).rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=3)
    return drawn


def colour_bar(width: int, height: int) -> Image.Image:
    """The colours of `overlay` over mid-grey, cold to hot from left to right."""
    place = torch.linspace(0, 1, width).expand(1, height, width)
    return picture_of(bytes_of(_blended(torch.full((3, height, width), 0.5), place)))


def legend_of(scale: HeatScale, width: int) -> Image.Image:
    """The colours of a scale with their numbers and unit, black on white, `LEGEND` pixels high."""
    picture = Image.new("RGB", (width, LEGEND), "white")
    picture.paste(colour_bar(width, 10), (0, 0))
    pen = ImageDraw.Draw(picture)
    for place, text in scale.ticks():
        x = place * (width - 1)
        pen.line((x, 0, x, 12), fill="black")
        pen.text((min(x, width - 1 - pen.textlength(text)), 12), text, fill="black")
    pen.text((0, 25), scale.unit, fill="black")
    return picture


def sheet(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], legend: str = "", scale: HeatScale | None = None
) -> Image.Image:
    """A grid of titled pictures of one size, on white, below a legend and the colours of a scale."""
    pictures = [picture for row in rows for _, picture in row]
    width, height = pictures[0].size
    step_x, step_y = width + MARGIN, height + TITLE + MARGIN
    columns = max(len(row) for row in rows)
    below_legend = MARGIN + (TITLE if legend else 0)
    top = below_legend + (LEGEND + MARGIN if scale else 0)
    whole = Image.new("RGB", (MARGIN + columns * step_x, top + len(rows) * step_y), "white")
    pen = ImageDraw.Draw(whole)
    pen.text((MARGIN, MARGIN), legend, fill="black")
    if scale is not None:
        whole.paste(legend_of(scale, min(2 * SIDE, columns * step_x - MARGIN)), (MARGIN, below_legend))
    for i, row in enumerate(rows):
        for j, (title, picture) in enumerate(row):
            x, y = MARGIN + j * step_x, top + i * step_y
            pen.text((x, y), title, fill="black")
            whole.paste(picture, (x, y + TITLE))
    return whole


def three_channels(image: Tensor) -> Tensor:
    """Of an image [C, H, W] the first three channels, or the first one three times where there are fewer."""
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def _blended(grey: Tensor, place: Tensor) -> Tensor:
    """A grey image [3, H, W] under the heat of places [1, H, W]: the hotter, the more of it."""
    share = 0.25 + 0.65 * place
    return grey * (1 - share) + heat(place[0]) * share


def _enlarged(image: Tensor, side: int = SIDE) -> Tensor:
    """An image [3, H, W] with each pixel as a square of pixels, so that a side has at least `side`."""
    factor = max(1, -(-side // min(image.shape[1:])))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
