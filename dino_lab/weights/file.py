"""The content of a file of weights, whoever wrote it. Nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.runs.checkpoint import folder_of_run, has_checkpoint, is_checkpoint, read_checkpoint
from dino_lab.runs.files import LAST, PREVIOUS

TIMM = "timm:"  # how a model of timm is written where a path could stand
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
IN_FOLDER = ("model.safetensors", INDEX, "pytorch_model.bin")  # of timm's folders and those of Hugging Face
DEEPEST = 8  # mappings inside mappings that are looked through
# Parts of a checkpoint that hold no network.
_BESIDE = {
    *("optimizer", "optimizers", "optimizer_states", "lr_schedulers", "scheduler", "scaler", "fp16_scaler"),
    *("callbacks", "loops", "hyper_parameters", "args", "dino_loss", "ibot_loss"),
}
_ADDED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # by torch, inside names


@dataclass(frozen=True)
class Content:
    """Every tensor of a file by its whole name, such as `teacher.backbone.cls_token`."""

    source: str  # the file, as it is spoken of
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)  # of a safetensors file
    config: dict[str, Any] = field(default_factory=dict)  # of `config.json` in the same folder
    warning: str = ""  # of a run: that its last checkpoint is damaged


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run that has a checkpoint, or the file is one."""
    return is_checkpoint(path) or has_checkpoint(path)


def read_weights(path: Path) -> Content:
    """The tensors of a file, a folder of timm or Hugging Face, or a run; a UserError where there are none."""
    if is_run(path):
        checkpoint = read_checkpoint(path, None, torch.device("cpu"), mapped=True)
        return Content(str(path), _flat(checkpoint.state), warning=checkpoint.warning)
    file = weights_file(path)
    try:
        found, metadata = (
            _safetensors(file) if file.suffix in (".safetensors", ".json") else (_torch(file), {})
        )
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{file}: is no file of tensors, or holds objects beside them, and none of it was run; save a "
            "state_dict alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except MemoryError:
        raise UserError(f"{file}: does not fit into memory") from None
    except Exception as error:  # a damaged file is refused in many ways
        raise UserError(f"{file}: cannot be read as weights ({first_line(error)})") from error
    tensors = _flat(found)
    if not tensors:
        raise UserError(f"{file}: holds no tensors")
    _check_sizes(file, tensors)
    return Content(str(path), tensors, metadata, _config(file))


def weights_file(path: Path) -> Path:
    """The file that holds the weights: the path itself, or in a folder the one that bears a usual name."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder")
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: holds no run, and no weights ({', '.join((LAST, *IN_FOLDER))})")


def digest(path: Path) -> str:
    """SHA-256 of the files that `read_weights` reads."""
    if is_run(path):
        folder = folder_of_run(path)
        last = [folder / LAST if (folder / LAST).exists() else folder / PREVIOUS]
        files = last if path == folder or path.name in (LAST, PREVIOUS) else [path]
    else:
        file = weights_file(path)
        files = [file, *(_shards(file) if file.name == INDEX else ())]
    changed = [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return _digest(tuple(changed))


@lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                whole.update(block)
    return whole.hexdigest()


def _safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in _shards(file) if file.name == INDEX else [file]:
        with safe_open(part, framework="pt") as opened:
            metadata |= opened.metadata() or {}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found, metadata


def _shards(index: Path) -> list[Path]:
    """The files of weights that are cut into several."""
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index}: names files outside its folder")
    return [index.parent / name for name in sorted(set(names))]


def _config(file: Path) -> dict[str, Any]:
    """What `config.json` beside weights in a folder says; nothing where there is none."""
    config = file.parent / CONFIG
    if file.name not in IN_FOLDER or not config.is_file():
        return {}
    try:
        plain = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config}: cannot be read ({first_line(error)})") from None
    if not isinstance(plain, dict):
        raise UserError(f"{config}: should be a mapping")
    return plain


class _Unread:
    """Stands for a setting that a training script stored beside the weights: nothing of it is kept."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...


class _Mapping:
    """The same, for what is filled like a dict."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """A plain dict."""
        return {}


# Names of classes whose objects training scripts store beside weights: arguments and configurations. Each is
# read as an empty stand-in; the class itself is neither imported nor called.
_SETTINGS = ("argparse.Namespace", "omegaconf.", "pathlib.", "numpy.", "typing.Any", "_codecs.encode")
_MAPPINGS = ("collections.defaultdict", "lightning.", "lightning_fabric.", "pytorch_lightning.")
_BUILT_IN = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")}


def _stand_ins(file: Path) -> list[Any]:
    """What stands for settings that a file names, as torch takes it."""
    named = {"argparse.Namespace"}
    if zipfile.is_zipfile(file):
        named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    settings = [(_Unread, name) for name in named if name.startswith(_SETTINGS) or name in _BUILT_IN]
    return [*settings, *((_Mapping, name) for name in named if name.startswith(_MAPPINGS))]


def _torch(file: Path) -> Any:
    in_zip = zipfile.is_zipfile(file)
    if in_zip:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > file.stat().st_size:  # torch compresses nothing
            raise UserError(f"{file}: holds compressed parts, as torch writes none")
    with torch.serialization.safe_globals(_stand_ins(file)):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=in_zip or None)


def _flat(values: Any) -> dict[str, Tensor]:
    """Tensors of nested mappings by dotted name, without parts that hold no network."""
    return {name: tensor for name, tensor in _leaves(values, "", DEEPEST) if tensor.layout is torch.strided}


def _leaves(value: Any, name: str, deeper: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        for added in _ADDED:
            name = name.replace(added, "")
        yield name, value.detach()
    elif isinstance(value, Mapping) and deeper:
        for key, inner in value.items():
            if isinstance(key, str) and not (key in _BESIDE and not isinstance(inner, Tensor)):
                yield from _leaves(inner, f"{name}.{key}" if name else key, deeper - 1)


def _check_sizes(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A UserError where a tensor claims more numbers than the file has: it may repeat one of them forever."""
    for name, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{file}: {name} of {list(tensor.shape)} is larger than what is stored of it")
