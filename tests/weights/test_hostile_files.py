"""Files that are cut, damaged or made to do harm: one line each, and nothing of them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_transformer import dino_names, dinov3_names, hugging_face_names, numbers
from safetensors.torch import save

from dino_lab.building.single import find_single, open_single
from dino_lab.errors import UserError
from dino_lab.registry import registry

SMALL = numbers(width=64, depth=1, heads=1)
STATE = {name: value.clone() for name, value in dino_names(SMALL).items()}
Write = Callable[[Path], Any]


def saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


class Harm:
    """Leaves a mark where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.given = function, arguments

    def __reduce__(self) -> Any:
        return self.given


def mark(path: Path) -> str:
    return f"open({str(path / 'harmed')!r}, 'w')"


def with_(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in (STATE | changed).items() if value is not None}


def flipped(content: bytes, at: float) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def header(**tensors: Any) -> bytes:
    """A safetensors file whose header says this, with 16 bytes behind it."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def said(**backbone: Any) -> dict[str, str]:
    """What an export of a transformer says of itself."""
    return {
        "backbone": json.dumps({"name": "vit", **backbone}),
        **{"size": "32", "largest": "32", "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"},
    }


def bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
        archive.writestr("archive/version", "3\n")


def nested() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["model"] = inner
    return inner


FITS = said(width=64, depth=1, heads=1, patch=8)
PTH, SAFE = saved(STATE), save(STATE)
LEGACY = saved(STATE, _use_new_zipfile_serialization=False)
REPEATED = torch.zeros(1).expand(10**5, 10**5)
CONTENT: dict[str, bytes | Callable[[Path], bytes]] = {
    "empty.pth": b"",
    "empty.safetensors": b"",
    "text.pth": b"weights: none\n",
    "text.safetensors": b"weights: none\n",
    "half.pth": PTH[: len(PTH) // 2],
    "end.pth": PTH[:-30],
    "begin.pth": PTH[200:],
    "half.safetensors": SAFE[: len(SAFE) // 2],
    "end.safetensors": SAFE[:-4],
    "begin.safetensors": SAFE[8:],
    "longer.safetensors": SAFE + b"more",
    "half_old.pth": LEGACY[: len(LEGACY) // 2],
    "end_old.pth": LEGACY[:-100],
    "names.pth": flipped(PTH, 0.0),
    "header.safetensors": flipped(SAFE, 0.0),
    "directory.pth": flipped(PTH, 0.9999),
    "code.pth": lambda path: saved({"model": STATE, "more": Harm(eval, mark(path))}),
    "code_old.pth": lambda path: saved(Harm(eval, mark(path)), _use_new_zipfile_serialization=False),
    "system.pth": lambda path: saved({"model": Harm(os.system, f"touch {path / 'harmed'}")}),
    "plain.pkl": lambda path: pickle.dumps(Harm(eval, mark(path))),
    "plain.pth": lambda path: pickle.dumps({"a": Harm(exec, mark(path))}),
    "module.pth": saved(torch.nn.Linear(2, 2)),
    "script.pth": saved({"f": Harm(__import__, "this")}),
    "list.pth": saved([1, 2, 3]),
    "number.pth": saved(3.0),
    "nothing.pth": saved({}),
    "no_tensors.pth": saved({"epoch": 3, "arch": "vit"}),
    "itself.pth": saved(nested()),
    "integers.pth": saved({0: torch.zeros(3), 1: torch.zeros(3)}),
    "sparse.pth": saved({"model": torch.eye(3).to_sparse()}),
    "classifier.pth": saved({"fc.weight": torch.zeros(3, 3)}),
    "repeated.pth": saved(with_(**{"patch_embed.proj.weight": REPEATED})),
    "repeated_positions.pth": saved(with_(pos_embed=torch.zeros(1, 1, 64).expand(1, 10**9, 64))),
    "huge.safetensors": header(a={"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}),
    "long_header.safetensors": struct.pack("<Q", 1 << 60) + b"{}",
    "overlap.safetensors": header(
        a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        b={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    ),
    "odd_type.safetensors": header(a={"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}),
    "no_attention.pth": saved(with_(**{"blocks.0.attn.qkv.weight": None})),
    "no_norm.pth": saved(with_(**{"norm.weight": None, "norm.bias": None})),
    "no_bias.pth": saved(with_(**{"blocks.0.norm1.bias": None})),
    "no_positions.pth": saved(with_(pos_embed=None)),
    "gap.pth": saved({name.replace("blocks.0.", "blocks.3."): value for name, value in STATE.items()}),
    "many_blocks.pth": saved(with_(**{"blocks.9999.norm1.weight": torch.zeros(64)})),
    "flat_projection.pth": saved(with_(**{"patch_embed.proj.weight": torch.zeros(64, 192)})),
    "empty_projection.pth": saved(with_(**{"patch_embed.proj.weight": torch.zeros(0, 3, 8, 8)})),
    "oblong.pth": saved(with_(**{"patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)})),
    "other_width.pth": saved(with_(**{"blocks.0.attn.qkv.weight": torch.zeros(96, 32)})),
    "other_norm.pth": saved(with_(**{"norm.weight": torch.zeros(3)})),
    "no_square.pth": saved(with_(pos_embed=torch.zeros(1, 13, 64))),
    "scalar.pth": saved(with_(cls_token=torch.zeros(()))),
    "registers.pth": saved(with_(register_tokens=torch.zeros(3))),
    "texts.pth": saved(STATE | {"blocks.0.mlp.fc1.weight": "weights"}),
    "not_a_number.pth": saved(with_(cls_token=torch.full((1, 1, 64), float("nan")))),
    "infinite.safetensors": save(STATE | {"cls_token": torch.full((1, 1, 64), float("inf"))}),
    "periods.pth": saved(
        dinov3_names(numbers(width=64, depth=1, heads=1, rotary=True, registers=1))
        | {"norm.bias": torch.zeros(1)}
    ),
    "wide.safetensors": save(STATE, said(width=65536, depth=200, heads=1, patch=4)),
    "wider.safetensors": save(STATE, said(width=2**40, heads=1, patch=4)),
    "no_deviation.safetensors": save(STATE, {**FITS, "std": "[0, 0, 0]"}),
    "two_means.safetensors": save(STATE, {**FITS, "mean": "[0, 0]"}),
    "odd_name.safetensors": save(STATE, {**FITS, "backbone": "[1]"}),
    "no_size.safetensors": save(STATE, {**FITS, "size": '"many"'}),
    "texts.safetensors": save(STATE, {**FITS, "mean": '["a", "b", "c"]'}),
    "negative.safetensors": save(STATE, {**FITS, "largest": "-4"}),
    "deep.pth": saved(STATE | {f"blocks.{i}.norm1.weight": torch.zeros(1) for i in range(1, 200)}),
    "key.pth": saved(
        {
            name: value
            for name, value in hugging_face_names(SMALL, kind="vit").items()
            if "attention.key.weight" not in name
        }
    ),
}


def test_the_file_that_is_spoiled_is_good(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save(STATE, FITS))
    (tmp_path / "b.pth").write_bytes(PTH)
    for name in ("a.safetensors", "b.pth"):
        open_single(find_single(str(tmp_path / name), registry), registry, torch.device("cpu"))


def test_there_are_fifty() -> None:
    assert len(CONTENT) >= 50


@pytest.mark.parametrize("name", CONTENT)
def test_a_bad_file_is_one_line_and_nothing_is_run(name: str, tmp_path: Path) -> None:
    given = CONTENT[name]
    (tmp_path / name).write_bytes(given(tmp_path) if callable(given) else given)
    with pytest.raises(UserError) as caught:
        open_single(find_single(str(tmp_path / name), registry), registry, torch.device("cpu"))
    line = str(caught.value)
    assert name in line
    assert "\n" not in line
    assert "weights_only=False" not in line  # what torch advises would run the file
    assert not (tmp_path / "harmed").exists()


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="holds compressed parts"):
        find_single(str(tmp_path / "bomb.pth"), registry)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no run, and no weights"),
        ({"model.safetensors": SAFE, "config.json": b"[1]"}, "config.json: should be a mapping"),
        ({"model.safetensors": SAFE, "config.json": b"{"}, "config.json: cannot be read"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'},
            "names files outside its folder",
        ),
        ({"model.safetensors.index.json": b"{}"}, "cannot be read as weights ('weight_map')"),
        ({"model.safetensors": SAFE, "preprocessor_config.json": b"["}, "preprocessor_config.json: cannot"),
        ({"last.pt": PTH}, "last.pt"),
    ],
)
def test_a_bad_folder_is_one_line(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        find_single(str(folder), registry)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
