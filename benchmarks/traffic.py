"""What DINO's step asks of a GPU, counted without one: launches, and bytes beside products.

    python -m benchmarks.traffic [--kernels N] [SETTING ...]

The step is that of ViT-S/16 on 2 x 224 + 8 x 96 pixels, with 65,536 prototypes and 256 images. The networks
are counted as they are, and as torch's compiler, Inductor, schedules them: its own list of kernels for an
H100, with the bytes that it says each reads and writes. What is not part of a network is counted as it is.
Nothing is computed, so that a machine of any size will do; Inductor takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from benchmarks.report import table
from benchmarks.step import ON_GPU
from dino_lab.kernels import class_token, gpu
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.testing.traffic import META, PRODUCTS, Traffic, counted
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train
from dino_lab.types import Output

CUDA = torch.device("cuda", 0)
BATCH = 256
H100 = SimpleNamespace(
    **{"name": "H100", "major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32},
    **{"total_memory": 80 << 30, "L2_cache_size": 50 << 20, "regs_per_multiprocessor": 65_536},
    **{"max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "gcnArchName": ""},
    **{"shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10},
    **{"shared_memory_per_multiprocessor": 228 << 10},
)


@dataclass
class Images:
    """Batches of images that have a shape and no numbers."""

    batch: int
    size: int

    @property
    def train_images(self) -> int:
        return 10 * self.batch

    def train(self, *_: Any) -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.empty(self.batch, 3, self.size, self.size, dtype=torch.uint8, device=META)
        while True:
            yield images, torch.zeros(self.batch, dtype=torch.int64, device=META)


def run_of_the_paper(*settings: str) -> Run:
    """DINO's run on the device `meta`, inside `counted`."""
    small = ("data={name: shapes, train_images: 16, test_images: 10, size: 32}", "train.log_every=1000")
    file = Path(__file__).with_name("step.yaml")
    spec = load(file, [*ON_GPU.settings, *small, "train.batch_size=8", *settings]).spec
    run: Any = build(spec, registry, META)
    whole = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": BATCH})})
    return replace(run, spec=whole, data=Images(BATCH, 256))


def step_of_the_paper(*settings: str) -> Traffic:
    """The second step of DINO's run, as it is."""
    with counted() as traffic:
        steps = train(run_of_the_paper(*settings))
        next(steps)
        traffic.launches.clear()
        traffic.bytes.clear()
        next(steps)
    return traffic


def without_networks(*settings: str) -> Traffic:
    """The second step, in which networks give outputs and gradients that cost nothing."""
    with patch.object(Network, "forward", _free):
        return step_of_the_paper(*settings)


def _free(network: Network, crops: list[Tensor]) -> Output:
    head: Any = network.head
    shape = sum(map(len, crops)), crops[0].shape[1]
    features, z = _Free.apply(shape, network.backbone.dim, head.dim, *network.parameters())
    return Output(features, z, z)


class _Free(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: tuple[int, int], D: int, K: int, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.weights = weights
        return torch.empty(*shape, D, device=META), torch.empty(*shape, K, device=META, dtype=torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, None, *map(torch.empty_like, ctx.weights)


@dataclass(frozen=True)
class Launch:
    """One entry of Inductor's schedule: a kernel of its own, or a call of torch's."""

    name: str  # of torch's operation; of a kernel the operations in it
    bytes: int
    own: bool

    @property
    def product(self) -> bool:
        return not self.own and self.name in PRODUCTS | {"attention_backward"}

    @property
    def launches(self) -> int:
        return 2 if self.name == "attention_backward" else 1  # as dino_lab.testing.traffic counts it


class _Scheduled(Exception):
    """The schedule of a graph is known, so that nothing need be compiled."""


class Schedules:
    """Graphs of torch.compile as Inductor schedules them for an H100; `found` has the launches of each."""

    def __init__(self) -> None:
        self.found: list[list[Launch]] = []

    def backend(self, graph: Any, inputs: Any) -> Any:
        """For `torch.compile`."""
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, inner_compile=self._inner)

    def _inner(self, graph: Any, inputs: Sequence[Any], **told: Any) -> Any:
        """In place of Inductor's own; `graph` is traced on the CPU and moved to the GPU."""
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.exc import InductorError

        with _moved(graph, CUDA), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            there = [_like(each) for each in inputs]
            on_gpu = make_fx(torch.fx.Interpreter(graph).run)(*there)
        known = {key: told[key] for key in ("is_backward", "is_inference") if key in told}
        before = len(self.found)
        try:
            with torch._guards.tracing(torch._guards.TracingContext(mode)):
                compile_fx_inner(on_gpu, there, **known)
        except InductorError:
            if len(self.found) == before:
                raise

        def run(arguments: list[Any]) -> tuple[Any, ...]:
            given = list(arguments)
            arguments.clear()
            return tuple(graph(*given))

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def schedule_of(self) -> Callable[[Any], Any]:
        """A method in place of `GraphLowering.compile_to_module`."""

        def schedule(lowered: Any) -> Any:
            lowered.init_wrapper_code()
            lowered._update_scheduler()
            self.found.append([launch for node in lowered.scheduler.nodes for launch in _launches(node)])
            raise _Scheduled

        return schedule


def _launches(node: Any) -> Iterator[Launch]:
    kind = type(node).__name__
    if kind == "NopKernelSchedulerNode" or type(node.node).__name__ == "MultiOutput":
        return
    size = node.get_read_write_buffers_sizes()
    if node.is_extern():
        called = getattr(node.node, "op_overload", None) or node.node.python_kernel_name
        yield Launch(str(called).split(".")[1], size, own=False)
    else:
        origins = {
            str(o.target).split(".")[1]
            for n in node.get_nodes()
            for o in n.node.origins
            if o.op == "call_function"
        }
        yield Launch(" ".join(sorted(origins)), size, own=True)


@contextmanager
def _moved(graph: Any, device: torch.device) -> Iterator[None]:
    """Inside, operations of a graph that name a device name this one."""

    def name(there: torch.device) -> None:
        for node in graph.graph.nodes:
            node.args, node.kwargs = tree_map(
                lambda x: there if isinstance(x, torch.device) else x, (node.args, node.kwargs)
            )
        graph.recompile()

    name(device)
    yield
    name(torch.device("cpu"))


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)


@torch.library.custom_op("traffic::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Fused attention [N, heads, Q, d], whose rows lie as a GPU's kernel writes them."""
    return torch.empty_like(query)


@torch.library.custom_op("traffic::attention_backward", mutates_args=())
def attention_backward(
    asked: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients."""
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _written(like: Tensor) -> Tensor:
    rows = like.transpose(1, 2)  # [N, Q, heads, d]
    return rows.new_empty(rows.shape).transpose(1, 2)


attention.register_fake(lambda query, key, value: _written(query))
attention_backward.register_fake(lambda asked, *given: tuple(map(_written, given[:3])))
attention.register_autograd(
    lambda ctx, asked: attention_backward(asked, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return attention(query.to(lower), key.to(lower), value.to(lower))


@contextmanager
def compiling(schedules: Schedules) -> Iterator[None]:
    """Inside, torch.compile takes this machine for one with an H100."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: H100,
        "_get_device_properties": lambda *_: H100,
        "get_device_capability": lambda *_: (9, 0),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.empty(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
        "_lazy_init": lambda: None,
    }
    patches: list[AbstractContextManager[Any]] = [
        *(patch.object(torch.cuda, name, answer, create=True) for name, answer in answers.items()),
        patch.object(GraphLowering, "compile_to_module", schedules.schedule_of()),
        patch.object(gpu, "launches_take_time", lambda device: True),
        patch.object(F, "scaled_dot_product_attention", _attend),
        patch.object(class_token, "products_pay", lambda x: False),
        config.patch(force_disable_caches=True, compile_threads=1),
        FakeTensorMode(allow_non_fake_inputs=True),
    ]
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield


def schedule(*settings: str) -> list[list[Launch]]:
    """Inductor's launches for the student's two ways and the teacher's one."""
    with counted():
        run = run_of_the_paper("train.precision=bfloat16", *settings)
    schedules = Schedules()
    teacher = run.network("teacher")
    with compiling(schedules):
        crops = [torch.empty(views, BATCH, 3, size, size) for views, size in run.augment.groups]
        out = _compiled(run.student, schedules)(crops)
        torch.autograd.backward(out, [torch.empty_like(each) for each in out])
        with torch.no_grad():
            _compiled(teacher, schedules)(crops[:1])
    return schedules.found


def _compiled(network: Network, schedules: Schedules) -> Callable[[list[Tensor]], list[Tensor]]:
    """The network, compiled, with weights that have a shape alone."""
    for module in network.modules():
        module._forward_pre_hooks.clear()  # by which attention on a CPU chooses how it is computed
        for name, weight in module.named_parameters(recurse=False):
            made = nn.Parameter(torch.empty(weight.shape), requires_grad=weight.requires_grad)
            setattr(module, name, made)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))

    def outputs(crops: list[Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = network(crops)
        return [out.features, out.z]

    compiled: Callable[[list[Tensor]], list[Tensor]] = torch.compile(
        outputs, fullgraph=True, backend=schedules.backend
    )
    return compiled


def _row(name: str, launches: Counter[str], sizes: Counter[str]) -> list[str]:
    products = sum(count for each, count in launches.items() if each in PRODUCTS)
    gigabytes = sum(sizes.values()) / 1e9
    return [name, str(launches.total()), str(products), str(launches.total() - products), f"{gigabytes:.1f}"]


def _of_graph(launches: list[Launch]) -> tuple[Counter[str], Counter[str]]:
    counts, sizes = Counter[str](), Counter[str]()
    for each in launches:
        counts["attention" if each.product else each.name] += each.launches
        if not each.product:
            sizes[each.name] += each.bytes
    return counts, sizes


HEADER = ["", "launches", "of products", "others", "GB of others"]
PARTS = ("student, forward", "student, backward", "teacher")


def main(arguments: Sequence[str] | None = None) -> str:
    """Both tables; with --kernels also the largest of Inductor's."""
    parser = argparse.ArgumentParser("benchmarks.traffic", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", help="of the spec, such as backbone.depth=2"
    )
    parser.add_argument(
        "--kernels", type=int, default=0, metavar="N", help="also the N largest of each graph"
    )
    given = parser.parse_args(arguments)
    rows = []
    for precision in ("float32", "bfloat16"):
        found = step_of_the_paper(f"train.precision={precision}", *given.settings)
        rows.append(_row(f"not compiled, {precision}", found.launches, found.bytes))
    rest = without_networks("train.precision=bfloat16", *given.settings)
    graphs = dict(zip(PARTS, schedule(*given.settings), strict=True))
    parts = {name: _of_graph(launches) for name, launches in graphs.items()}
    parts["all else"] = (rest.launches, rest.bytes)
    launches = sum((counts for counts, _ in parts.values()), Counter[str]())
    sizes = sum((each for _, each in parts.values()), Counter[str]())
    rows.append(_row("compiled, bfloat16", launches, sizes))
    rows += [_row(f"- {name}", *both) for name, both in parts.items()]
    lines = [table(HEADER, rows)]
    for name, its in graphs.items() if given.kernels else ():
        sizes = Counter[str]()
        for each in its:
            sizes[f"{'kernel' if each.own else 'call'} {each.name}"] += each.bytes * (not each.product)
        counts = Counter(f"{'kernel' if each.own else 'call'} {each.name}" for each in its)
        largest = [
            [f"{size / 1e9:.2f}", str(counts[key]), key[:100]]
            for key, size in sizes.most_common(given.kernels)
        ]
        lines.append(table([f"GB, {name}", "launches", "what"], largest))
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
