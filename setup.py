"""Builds fastgen's compiled extensions: `_C.so` (operators on the CPU), `_host` (the sampler, by pybind11) and
`_C_cuda.so`.

Where one cannot be built (no torch, no compiler, no CUDA), a line says why and the installation goes on without it:
Python's references always run. The environment variables are in CONTRIBUTING.md. Install with `--no-build-isolation`,
so that the torch that is built against is the torch that will load the result.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    # Without the last flag g++ stays at 256 bits.
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
# -fno-trapping-math lets g++ turn the clamps of the formulas into blends; -ffast-math would break NaN.
KERNEL_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS += ["-fno-exceptions", "-fno-rtti"]
# Random numbers must have the same bits on every backend: no multiplication and addition become one.
EXACT = {"csrc/cpu/philox_normal.cpp": ["-ffp-contract=off"]}
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
HOST_FLAGS = ["-std=c++17", "-O2", "-g0", "-fvisibility=hidden"]
# The first thing that is wrong ends the process. -O1 keeps every access that the source makes; a number that becomes an
# index must fit into it, which `undefined` alone does not ask.
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
SANITIZE = [*SANITIZERS, "-O1", "-g", "-fno-omit-frame-pointer"] if os.environ.get("FASTGEN_SANITIZE") == "1" else []

REPORT: dict = {"isas": list(ISA_FLAGS), "skipped": {}}


def skip(extension: str, why: str, *, optional: bool = False) -> None:
    """Say why an extension is not built; an error under FASTGEN_REQUIRE_EXT=1 unless it is optional."""
    if os.environ.get("FASTGEN_REQUIRE_EXT") == "1" and not optional:
        raise SystemExit(f"fastgen: {extension} not built: {why} (FASTGEN_REQUIRE_EXT=1)")
    print(f"fastgen: {extension} not built: {why}", file=sys.stderr)
    REPORT["skipped"][extension] = why


def sources(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def cuda_architectures() -> list[str]:
    """`-gencode` flags from TORCH_CUDA_ARCH_LIST ("8.0;9.0a;10.0+PTX")."""
    flags = []
    for arch in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0a;10.0").replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def up_to_date(obj: str) -> bool:
    """Whether an object is newer than this file and all that the compiler read to make it, as it noted beside it."""
    noted = Path(obj).with_suffix(".d")
    if not (os.path.exists(obj) and noted.exists()):
        return False
    read = noted.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    return all(os.path.exists(path) and os.path.getmtime(path) < os.path.getmtime(obj) for path in (__file__, *read))


class BuildKernels(build_ext):
    """Compiles kernel files once per instruction set, CUDA with nvcc, and survives whatever is missing."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            # Kept, where an editable install would lose them: the next one compiles what has changed.
            self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        if SANITIZE:
            self.build_temp += "-sanitize"

    def run(self) -> None:
        super().run()
        report = Path(self.get_ext_fullpath("fastgen._C")).parent / "_build.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(REPORT, indent=2) + "\n")

    def build_extension(self, ext: Extension) -> None:
        file = ext.name.removeprefix("fastgen.")
        try:
            if file == "_C_cuda":
                self.link_cuda(ext)
            else:
                # Linked again where one of these is newer than the library.
                ext.extra_objects = ext.depends = self.compile_objects(ext)
                ext.sources = []
                ext.extra_link_args = SANITIZE
                super().build_extension(ext)
        except SystemExit:
            raise
        except Exception as error:
            skip(file, str(error).splitlines()[0], optional=file == "_C_cuda")

    def compile_objects(self, ext: Extension) -> list[str]:
        """The extension's own sources, and its kernels once per instruction set, as many at a time as there are
        cores.
        """

        def compile_one(task: tuple[str, str, list[str]]) -> str:
            source, isa, flags = task
            # distutils names an object after its source: each instruction set needs a folder of its own.
            folder = os.path.join(self.build_temp, isa)
            (obj,) = self.compiler.object_filenames([source], output_dir=folder)
            if not up_to_date(obj):
                macros = [("FASTGEN_ISA", isa)] if isa != "baseline" else []
                self.compiler.compile(
                    [source],
                    output_dir=folder,
                    macros=macros,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*flags, *SANITIZE, "-MMD"],
                )
            return obj

        tasks = [(source, "baseline", ext.extra_compile_args) for source in ext.sources]
        for isa, flags in ISA_FLAGS.items():
            tasks += [(source, isa, KERNEL_FLAGS + flags + EXACT.get(source, [])) for source in ext.kernels]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, tasks))

    def link_cuda(self, ext: Extension) -> None:
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in ext.include_dirs]
        flags = ["-std=c++17", "-O3", "-DUSE_CUDA", *STABLE_ABI, "-Xcompiler", "-fPIC,-fvisibility=hidden"]

        def compile_one(source: str) -> str:
            obj = str(folder / (Path(source).stem + ".o"))
            command = ["nvcc", "-c", source, "-o", obj, *flags, *cuda_architectures(), *includes]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"nvcc: {(done.stderr or done.stdout).strip()}")
            return obj

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.kernels))
        # nvcc links: it knows where its own runtime is, whatever wrapper stands on PATH.
        libraries = [f"-L{path}" for path in ext.library_dirs] + [f"-l{name}" for name in ext.libraries]
        subprocess.run(["nvcc", "-shared", *objects, *libraries, "-o", str(target)], check=True)
        REPORT["cuda_architectures"] = cuda_architectures()

    def get_ext_filename(self, name: str) -> str:
        # _C and _C_cuda are loaded by torch, not imported by Python, so they carry no Python version.
        if name.rsplit(".", 1)[-1] in ("_C", "_C_cuda"):
            return os.path.join(*name.split(".")) + ".so"
        return super().get_ext_filename(name)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def copy_extensions_to_source(self) -> None:
        built = [e for e in self.extensions if Path(self.build_lib, self.get_ext_filename(e.name)).exists()]
        # A library of earlier sources would be loaded as if it were of these.
        for extension in self.extensions:
            if extension not in built:
                (ROOT / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        everything, self.extensions = self.extensions, built
        super().copy_extensions_to_source()
        self.extensions = everything
        report = Path(self.build_lib, "fastgen", "_build.json")
        if report.exists():
            shutil.copy(report, ROOT / "fastgen" / "_build.json")

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


def extensions() -> list[Extension]:
    try:
        import torch
    except ImportError:
        for name in ("_C", "_host"):
            skip(name, "torch is not importable here (install with --no-build-isolation)")
        skip("_C_cuda", "torch is not importable here", optional=True)
        return []
    REPORT["torch"], REPORT["compiler"] = torch.__version__, os.environ.get("CXX", "c++")
    torch_root = Path(torch.__file__).parent
    paths = {"include_dirs": [str(torch_root / "include")], "library_dirs": [str(torch_root / "lib")]}
    torch_libraries = {"libraries": ["torch_cpu", "c10"], **paths}
    cpu = Extension("fastgen._C", sources("csrc/cpu/*_register.cpp"), language="c++", **torch_libraries)
    cpu.extra_compile_args = HOST_FLAGS + STABLE_ABI
    cpu.kernels = [s for s in sources("csrc/cpu/*.cpp") if s not in cpu.sources]
    return [cpu, *host_extension(torch_libraries), *cuda_extension(torch, torch_libraries)]


def host_extension(torch_libraries: dict) -> list[Extension]:
    try:
        import pybind11
    except ImportError:
        skip("_host", "pybind11 is not importable here")
        return []
    host = Extension("fastgen._host", sources("csrc/host/*.cpp"), language="c++", **torch_libraries)
    host.include_dirs = [*host.include_dirs, pybind11.get_include()]
    isas = ",".join(ISA_FLAGS)
    host.extra_compile_args = HOST_FLAGS + STABLE_ABI + [f'-DFASTGEN_ISAS="{isas}"']
    host.kernels = sources("csrc/sampling/*.cpp")
    return [host] if host.sources else []


def cuda_extension(torch, torch_libraries: dict) -> list[Extension]:
    mode = os.environ.get("FASTGEN_BUILD_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"FASTGEN_BUILD_CUDA: expected auto, 0 or 1, got {mode!r}")
    if mode == "0":
        skip("_C_cuda", "FASTGEN_BUILD_CUDA=0", optional=True)
    elif mode == "auto" and not torch.version.cuda:
        skip("_C_cuda", "this torch is built without CUDA", optional=True)
    elif not shutil.which("nvcc"):
        skip("_C_cuda", "nvcc is not on PATH", optional=True)
    else:
        cuda = Extension("fastgen._C_cuda", [], **torch_libraries)
        cuda.kernels = sources("csrc/cuda/*.cu")
        return [cuda]
    return []


setup(
    packages=[
        *find_packages(include=["fastgen", "fastgen.*"]),
        "fastgen._triton",
        "fastgen.bench",
        "fastgen.bench.baselines",
    ],
    package_dir={"fastgen": "fastgen", "fastgen._triton": "kernels/triton", "fastgen.bench": "bench"},
    package_data={"fastgen": ["_build.json", "py.typed"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
)
