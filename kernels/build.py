"""``python -m saishiki.kernels.build [OP ...] [-o DIR]``: compiles the kernels ahead of time, without a GPU.

Writes one cubin per kernel variant and architecture, and ``index.json``: all that a runtime without Triton must know to
launch them. The same source and Triton version give the same bytes. Naming ops compiles these alone and keeps what the
index says of the others. Triton must not run as interpreter in this process.
"""

import argparse
import hashlib
import inspect
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import triton
from triton.backends.compiler import GPUTarget

from saishiki.kernels.attention import VARIANTS as ATTENTION
from saishiki.kernels.average_pool import VARIANTS as AVERAGE_POOL
from saishiki.kernels.convolution import VARIANTS as CONVOLUTION
from saishiki.kernels.fused_sampler_step import VARIANTS as FUSED_SAMPLER_STEP
from saishiki.kernels.group_norm_silu import VARIANTS as GROUP_NORM_SILU
from saishiki.kernels.layer_norm import VARIANTS as LAYER_NORM
from saishiki.kernels.masked_split_cross_attention import VARIANTS as MASKED_SPLIT_CROSS_ATTENTION
from saishiki.kernels.mean import VARIANTS as MEAN
from saishiki.kernels.pointwise import VARIANTS as POINTWISE
from saishiki.kernels.region_order import VARIANTS as REGION_ORDER
from saishiki.kernels.split_projection import VARIANTS as SPLIT_PROJECTION
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.cubins import CUBINS, INDEX_NAME, CubinEntry, CubinIndex, read_cubin_index

OPS: Mapping[str, tuple[Variant, ...]] = {
    "attention": ATTENTION,
    "average_pool": AVERAGE_POOL,
    "convolution": CONVOLUTION,
    "fused_sampler_step": FUSED_SAMPLER_STEP,
    "group_norm_silu": GROUP_NORM_SILU,
    "layer_norm": LAYER_NORM,
    "masked_split_cross_attention": MASKED_SPLIT_CROSS_ATTENTION,
    "mean": MEAN,
    "pointwise": POINTWISE,
    "region_order": REGION_ORDER,
    "split_projection": SPLIT_PROJECTION,
}
VARIANTS = {variant.name: variant for variants in OPS.values() for variant in variants}
# Stated because Triton's own defaults differ between versions. PTX 8.7 is the least that knows sm_120.
OPTIONS = {"enable_fp_fusion": True, "ptx_version": 87}
# Triton adds these to every kernel; both are null, because no kernel here asks for scratch memory.
HIDDEN = (("global_scratch", "null"), ("profile_scratch", "null"))


def source_sha256(kernel: Any) -> str:
    """The sha256, in hex, of the source text of a kernel and of all it calls; the same under Triton's interpreter."""
    functions = {kernel.fn}
    found = [kernel.fn]
    while found:
        called = _called_by(found.pop()) - functions
        functions |= called
        found += called
    texts = sorted(inspect.getsource(function) for function in functions)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _called_by(function: Any) -> set[Any]:
    """The kernels that a function names; an attribute of the same name may give one too many."""
    named = (getattr(function.__globals__.get(name), "fn", None) for name in function.__code__.co_names)
    return {called for called in named if inspect.isfunction(called)}


def build_cubin(variant: Variant, sm: int) -> tuple[bytes, CubinEntry]:
    """The cubin of a variant for one compute capability, and its entry in the index."""
    options = {**OPTIONS, "num_warps": variant.num_warps, "num_stages": variant.num_stages}
    # Line information would carry the paths of this machine into the cubin.
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(variant.source(), target=GPUTarget("cuda", sm, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{variant.name} wants scratch memory, which the launcher does not provide")
    cubin, arch, log = _assemble(compiled.asm["ptx"])
    entry = CubinEntry(
        name=variant.name,
        target=f"sm{sm}",
        arch=arch,
        file=f"{variant.name}.sm{sm}.cubin",
        sha256=hashlib.sha256(cubin).hexdigest(),
        source_sha256=source_sha256(variant.kernel),
        entry=metadata.name,
        args=(*variant.signature.items(), *HIDDEN),
        constexprs=variant.constexprs,
        aligned=variant.aligned,
        grid=variant.grid,
        threads=32 * variant.num_warps,
        shared_bytes=metadata.shared,
        registers=_number(r"Used (\d+) registers", log),
        spill_bytes=_number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log),
    )
    return cubin, entry


def _assemble(ptx: str) -> tuple[bytes, str, str]:
    """The cubin, its architecture and what ptxas reports, by the ptxas that comes with Triton.

    That is the older of the two in the wheel: its cubins load on every driver that a newer one's do.
    """
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    arch = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.ptx").write_text(ptx)
        command = [ptxas, "-v", "--gpu-name", arch[1], "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return Path(folder, "kernel.cubin").read_bytes(), arch[1], done.stderr


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    assert found is not None, log
    return int(found[1])


def build_all(output: Path, names: Iterable[str]) -> Iterator[CubinEntry]:
    """Compiles variants for their architectures on all cores, writes each cubin and gives its entry as it comes."""
    output.mkdir(parents=True, exist_ok=True)
    jobs = [(name, sm) for name in names for sm in VARIANTS[name].sms]
    # Not by fork: Triton has threads.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for cubin, entry in pool.map(_build_named, *zip(*jobs, strict=True)):
            (output / entry.file).write_bytes(cubin)
            yield entry


def _build_named(name: str, sm: int) -> tuple[bytes, CubinEntry]:
    # A kernel cannot be sent to another process, its name can.
    return build_cubin(VARIANTS[name], sm)


def write_index(output: Path, entries: Iterable[CubinEntry]) -> None:
    """Writes the index of a folder, in the order of :data:`VARIANTS`, and removes cubins that are not in it."""
    files = [f"{variant.name}.sm{sm}.cubin" for variant in VARIANTS.values() for sm in variant.sms]
    order = {file: place for place, file in enumerate(files)}
    kept = sorted((entry for entry in entries if entry.file in order), key=lambda entry: order[entry.file])
    index = CubinIndex(triton.__version__, OPTIONS, tuple(kept))
    (output / INDEX_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
    for stale in {path.name for path in output.glob("*.cubin")} - {entry.file for entry in kept}:
        (output / stale).unlink()


def _entries_of_others(output: Path, names: Iterable[str]) -> list[CubinEntry]:
    """What the index of a folder says of variants other than these; nothing where another Triton wrote it."""
    if not (output / INDEX_NAME).exists():
        return []
    index = read_cubin_index(output)
    if index.triton != triton.__version__:
        raise ValueError(f"{output} was built with triton {index.triton}, this is {triton.__version__}; build all ops")
    return [entry for entry in index.cubins if entry.name not in set(names)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"some of {', '.join(OPS)}; default: all")
    parser.add_argument("-o", "--output", type=Path, default=CUBINS, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set; the interpreter compiles nothing: unset it")
    if unknown := set(options.ops) - OPS.keys():
        parser.error(f"no op {', '.join(sorted(unknown))}; expected some of {', '.join(OPS)}")
    names = [variant.name for op in options.ops or OPS for variant in OPS[op]]
    try:
        entries = _entries_of_others(options.output, names) if options.ops else []
    except ValueError as error:
        parser.error(str(error))
    for entry in build_all(options.output, names):
        print(f"{entry.file}: {entry.registers} registers, {entry.spill_bytes} bytes spilled, {entry.arch}", flush=True)
        entries.append(entry)
    write_index(options.output, entries)


if __name__ == "__main__":
    main()
