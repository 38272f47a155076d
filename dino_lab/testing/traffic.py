"""What a GPU would be given to do, counted without one: whole steps on torch's device `meta`.

Tensors there have a shape and no numbers, so steps of any size run anywhere, and a host that waited for a
number could not go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dino_lab.kernels import gpu

META = torch.device("meta")
# Views and allocations: nothing is computed.
FREE = frozenset(
    [
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "lift_fresh",
        "new_empty",
        "new_empty_strided",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "_reshape_alias",
        "_unsafe_view",
    ]
)
# Bounded by arithmetic, so their bytes are not counted.
PRODUCTS = frozenset(["addmm", "attention", "baddbmm", "bmm", "convolution", "convolution_backward", "mm"])
WAITS = frozenset(["_local_scalar_dense", "equal", "is_nonzero", "item"])
# Functions that autocast computes in the lower precision, and in float32.
LOWER = frozenset(
    [
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.bilinear, F.scaled_dot_product_attention),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.einsum),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
    ]
)
FLOAT32 = frozenset(
    [
        *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cosine_similarity, F.mse_loss),
        *(torch.norm, torch.softmax, torch.logsumexp, Tensor.norm, Tensor.softmax, Tensor.logsumexp),
    ]
)
# A launch over many tensors takes so many of them by the number of lists, and so many blocks of numbers
# (torch, aten/src/ATen/native/cuda/MultiTensorApply.cuh).
MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
MOST_BLOCKS, NUMBERS_OF_A_BLOCK = 320, 65_536


class Traffic(TorchDispatchMode):
    """Launches of kernels, bytes read and written, waits of the host, and operations that mix devices.

    An operation of torch reads and writes its tensors whole. Of Triton's kernels, one that cuts reads the box
    of each crop once, and again where the contrast needs the crop's mean; the blur reads and writes the crops
    that drew it twice. What a kernel reads more than once of the same place is taken to come from the caches.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()  # beside products of matrices, convolutions and attention
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        given = _tensors(args, kwargs)
        there = [tensor for tensor in given if tensor.device == META]
        if there and (name in WAITS or _leaves(name, args, kwargs)):
            return self._wait(name, function, args, kwargs)
        # `meta` lacks some of the fused optimizers, which change tensors in place alone.
        result = None if name.startswith("_fused") else function(*args, **kwargs)
        moved = [tensor for tensor in _tensors(result) if tensor.device == META]
        if name in FREE or not (there or moved):
            return result
        if any(t.device != META and t.ndim for t in given) and name not in ("_to_copy", "copy_"):
            self.mixed[name] += 1
        self._count(name, _launches(name, args), [*there, *moved])
        return result

    def launched(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """In place of `gpu.launch`: the kernel is only counted."""
        name, tensors = kernel.__name__, [a for a in arguments if isinstance(a, Tensor)]
        if name == "make_crops":
            images, rows, crops = tensors
            assert constants["CUT"]
            assert images.dtype == torch.uint8
            passes = 1 + (rows[:, 6:23:3] != 0).any(1).float()  # columns: how much of the mean
            self.bytes[name] += int((rows[:, 2] * rows[:, 3] * passes).sum()) * crops.shape[1]
            tensors = [crops]
        elif name == "blur_lines":
            tensors = [tensors[1]] * 2
        elif name == "scale_tensors":
            self.bytes[name] += 2 * 4 * int(tensors[2].sum())
        self._count(name, 1, tensors)

    def _count(self, name: str, launches: int, tensors: list[Tensor]) -> None:
        self.launches[name] += launches
        if name not in PRODUCTS:
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors)

    def _wait(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """The host reads ones."""
        self.waits[name] += 1
        if name in ("_to_copy", "copy_"):
            like = args[0]
            dtype = kwargs.get("dtype") or like.dtype
            return torch.ones(like.shape, dtype=dtype) if name == "_to_copy" else like.fill_(1)
        return True if name in ("equal", "is_nonzero") else args[0].new_ones((), device="cpu").item()


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _leaves(name: str, args: Any, kwargs: Any) -> bool:
    """Whether this copies from the device to the host."""
    if name == "_to_copy":
        target = kwargs.get("device")
        return target is not None and torch.device(target) != META
    return name == "copy_" and args[0].device != META


def _launches(name: str, args: Any) -> int:
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [
        part for part in args if isinstance(part, (list, tuple)) and part and isinstance(part[0], Tensor)
    ]
    if name.startswith("_foreach") and any(
        len({t.shape for t in row}) > 1 for row in zip(*lists, strict=True)
    ):
        return len(lists[0])  # of unlike shapes: one by one
    blocks = sum(-(-tensor.numel() // NUMBERS_OF_A_BLOCK) for tensor in lists[0])
    return max(-(-len(lists[0]) // MOST_TENSORS[min(len(lists), 5)]), -(-blocks // MOST_BLOCKS))


@contextmanager
def counted() -> Iterator[Traffic]:
    """Inside, what is computed on `meta` goes the way that a GPU with Triton would go, and is counted.

    Autocast does not know the device; `_Autocast` takes its place.
    """
    traffic = Traffic()

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(traffic, query, key, value)

    patches: list[AbstractContextManager[Any]] = [
        patch.object(torch, "autocast", _autocast),
        patch("torch.optim.adam._device_dtype_check_for_fused", lambda *_, **__: None),
        patch("torch.optim.sgd._device_dtype_check_for_fused", lambda *_, **__: None),
        patch.object(gpu, "runs_triton", lambda device: device == META),
        patch.object(gpu, "launch", traffic.launched),
        patch.object(gpu, "moved", _copying(traffic)),
        patch.object(F, "scaled_dot_product_attention", attention),
    ]
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        with traffic:
            yield traffic


def _copying(traffic: Traffic) -> Callable[[Tensor, torch.device], Tensor]:
    def moved(small: Tensor, device: torch.device) -> Tensor:
        """Counted, and left on the host, where the counting of kernels reads it."""
        traffic._count("copy", 1, [small])
        return small

    return moved


def _autocast(
    device: str, dtype: torch.dtype | None = None, enabled: bool = True
) -> AbstractContextManager[Any]:
    return _Autocast(dtype or torch.bfloat16) if enabled else nullcontext()


class _Autocast(TorchFunctionMode):
    """The casts of autocast on a GPU, of the functions that networks are made of.

    Weights that are trained are cast once (torch, docs/source/amp.md, and aten/src/ATen/autocast_mode.h).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._kept: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOWER:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif func in FLOAT32:
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self._dtype)
        if id(value) not in self._kept:
            self._kept[id(value)] = value.to(self._dtype)
        return self._kept[id(value)]


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


class _Attention(torch.autograd.Function):
    """One launch, and two for the way back, as flash attention has (arXiv 2307.08691)."""

    @staticmethod
    def forward(ctx: Any, traffic: Traffic, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.traffic, ctx.like = traffic, (query, key, value)
        traffic._count("attention", 1, [])
        return torch.empty_like(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.traffic._count("attention", 2, [])
        return None, *(torch.empty_like(tensor) for tensor in ctx.like)
