"""Published augmentations as lists of operations: which method, where it is said, and with what numbers.

Sizes of crops are given by the spec, because they are those of the images; the order of operations is that
of the sources, but that flips, which change nothing that the others see, come after the crop.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

Preset = Literal["dino_v1", "dino_v2", "simclr", "byol", "moco_v3"]
PRESETS: tuple[str, ...] = get_args(Preset)


def _ops(
    scale: tuple[float, float], jitter: dict[str, float], blur: float, solarize: float = 0.0
) -> list[Any]:
    found: list[Any] = [{"crop": {"scale": list(scale)}}, "flip", {"jitter": jitter}, {"grey": 0.2}]
    found += [{"blur": {"sigma": [0.1, 2.0], "p": blur}}]
    return found + [{"solarize": solarize}] * bool(solarize)


# BYOL's, which DINO, DINOv2 and MoCo v3 take over.
_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}
# SimCLR's at strength 1.
_STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8}


def groups(preset: Preset, size: int, local_size: int, local_views: int) -> list[dict[str, Any]]:
    """The groups of a preset, with large crops of `size` pixels; only DINO and DINOv2 have local ones."""
    match preset:
        case "dino_v1":  # arXiv 2104.14294, Sec. 3.1 and main_dino.py, DataAugmentationDINO
            return _multicrop((0.4, 1.0), (0.05, 0.4), size, local_size, local_views)
        case "dino_v2":  # arXiv 2304.07193; dinov2/data/augmentations.py, configs/ssl_default_config.yaml
            return _multicrop((0.32, 1.0), (0.05, 0.32), size, local_size, local_views)
        case "simclr":  # arXiv 2002.05709, App. A
            return [{"views": 2, "size": size, "ops": _ops((0.08, 1.0), _STRONG, 0.5)}]
        case "byol":  # arXiv 2006.07733, App. B, Table 6
            return _two(size, (0.08, 1.0))
        case "moco_v3":  # arXiv 2104.02057, Sec. 3 "as BYOL"; main_moco.py, with the ViT's --crop-min 0.08
            return _two(size, (0.08, 1.0))


def _two(size: int, scale: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"views": 1, "size": size, "ops": _ops(scale, _JITTER, 1.0)},
        {"views": 1, "size": size, "ops": _ops(scale, _JITTER, 0.1, 0.2)},
    ]


def _multicrop(
    large: tuple[float, float], small: tuple[float, float], size: int, local_size: int, local_views: int
) -> list[dict[str, Any]]:
    local = {"views": local_views, "size": local_size, "sees": "student", "ops": _ops(small, _JITTER, 0.5)}
    return _two(size, large) + [local] * bool(local_views)
