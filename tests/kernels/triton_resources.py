"""Kernels compiled for a GPU that need not be there, and what they would use of it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dino_lab.kernels import gpu

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="no Triton: it comes with torch for CUDA"
)


@dataclass(frozen=True)
class Use:
    """Registers of a thread, bytes of its stack and local memory, bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int


def resources(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, folder: Path
) -> Use:
    """Of a kernel compiled for a GPU of this compute capability; arguments without a type are int32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**constants, "BLOCK": gpu.BLOCK}
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": gpu.WARPS},
    )
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("Triton came without cuobjdump, which reads the use of resources")
    said = subprocess.check_output([tool, "-res-usage", folder / "kernel.cubin"], text=True)
    use = dict(part.split(":") for part in said.split() if part.count(":") == 1 and part[0].isupper())
    found = Use(int(use["REG"]), int(use["LOCAL"]) + int(use["STACK"]), compiled.metadata.shared)
    print(f"{kernel.__name__}, sm_{capability}: {found}")
    return found
