"""A GPU that is not there: tensors that say they lie on `cuda:0`, and are computed on the CPU.

What a GPU would refuse is refused: operations that mix devices, numpy arrays of its tensors, and generators
of the other device. Numbers are the CPU's, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dino_lab.kernels import gpu

GPU = torch.device("cuda", 0)
MOVES = ("_to_copy", "copy_")
# Indices may lie on the CPU where what is indexed does not.
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class Mixed(Exception):
    """An operation on tensors of the GPU and of the CPU."""


class OnGpu(Tensor):
    """A tensor whose numbers lie in `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of cuda:0 is no numpy array; `.cpu()` comes first")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes what is asked for on the GPU, which no tensor among the arguments says."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(function, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, `cuda:0` is a device whose tensors are `OnGpu`; kernels of Triton and cuDNN are not asked."""
    # Autograd asks once how many GPUs there are. For the pretended one it would start threads, and processes
    # that are forked afterwards could not differentiate.
    torch.ones(1, requires_grad=True).sum().backward()
    torch._C._ensureCUDADeviceGuardSet()  # where there is no GPU, switching to one does nothing from now on
    with ExitStack() as stack:
        # Lists of numbers are made tensors of the CPU, and moved by an operation that is seen here.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # Modules that are moved are given new weights, for these are of another kind than the old ones.
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Factories())  # type: ignore[no-untyped-call]
        stack.enter_context(
            patch.object(torch.cuda, "_lazy_init", lambda: None)
        )  # it would look for a driver
        stack.enter_context(patch.object(gpu, "_has_triton", lambda: False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(patch.object(Tensor, "pin_memory", lambda tensor, *_: tensor))
        stack.enter_context(patch.object(torch.cuda, "mem_get_info", lambda *_: (2**36, 2**36)))
        yield GPU


def _compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return 0  # products and a softmax: the CPU lacks the GPU's fused attention
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnGpu) for tensor in tensors)
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked).type == GPU.type:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != GPU.type:
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        kwargs, goes = kwargs | {"device": torch.device("cpu")}, True
    else:
        goes = there and asked is None
    if there and name not in MOVES:
        _check(name, tensors, args)
    result = function(*_held(args), **_held(kwargs))
    if name == "copy_":
        return args[0]
    if not goes:
        return result
    return _wrapped(result, tensors)


def _check(name: str, tensors: list[Tensor], args: Any) -> None:
    """A Mixed where tensors of the CPU that are more than one number take part."""
    if name in INDEXED and isinstance(args[0], OnGpu):
        tensors = [args[0], *(leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor))]
    if any(not isinstance(tensor, OnGpu) and tensor.ndim for tensor in tensors):
        raise Mixed(f"{name}: tensors of cuda:0 and of the CPU")


def _held(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.held if isinstance(leaf, OnGpu) else leaf, tree)


def _wrapped(result: Any, given: list[Tensor]) -> Any:
    """The result there; what was changed in place stays the tensor that it was."""
    same = {id(tensor.held): tensor for tensor in given if isinstance(tensor, OnGpu)}
    return tree_map(
        lambda leaf: same.get(id(leaf), OnGpu(leaf)) if isinstance(leaf, Tensor) else leaf, result
    )
