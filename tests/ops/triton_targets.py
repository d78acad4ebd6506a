"""Compiles the kernels in the `COMPILE` tables of `fastgen._triton` for the GPU that its first argument names, without
having one; prints JSON lines. The second argument says which variants of a kernel: `all`, or the `first`.

Run as a script, in a process of its own: a kernel that was imported under TRITON_INTERPRET=1 cannot be compiled.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import fastgen._triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def spilled(compiled) -> int:
    """Bytes of registers spilled to memory."""
    if "amdgcn" in compiled.asm:
        return sum(int(n) for n in re.findall(r"\.[vs]gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"]))
    dump = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*"), None)
    if dump is None:
        return 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True).stdout
    return sum(int(n) for n in re.findall(r"LOCAL:(\d+)", usage))


def main(target: str, which: str) -> None:
    for module in pkgutil.iter_modules(fastgen._triton.__path__):
        family = importlib.import_module(f"fastgen._triton.{module.name}")
        for kernel, variants in getattr(family, "COMPILE", {}).items():
            for signature, constants, *options in variants[: 1 if which == "first" else None]:
                # The launch at run time specialises on divisibility of pointers and sizes; so must this.
                attributes = {
                    (i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] in "*i"
                }
                signature = {**signature, **dict.fromkeys(constants, "constexpr")}
                names = {name: signature[name] for name in kernel.arg_names}
                order = list(names)
                attributes = {(order.index(list(signature)[i[0]]),): value for i, value in attributes.items()}
                source = ASTSource(fn=kernel, signature=names, constexprs=constants, attrs=attributes)
                compiled = triton.compile(source, target=TARGETS[target], options=options[0] if options else {})
                row = {"family": module.name, "kernel": kernel.__name__, "constants": str(constants)}
                print(json.dumps({**row, "spilled": spilled(compiled), "shared": compiled.metadata.shared}))


if __name__ == "__main__":
    main(*sys.argv[1:])
