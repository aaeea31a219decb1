"""``python -m saishiki.kernels.build [-o DIR]``: compiles the kernels ahead of time; needs neither a GPU nor a driver.

Writes one cubin per kernel variant and architecture, and ``index.json``: all that a runtime without Triton must know to
launch them. The same source and Triton version give the same bytes. Triton must not run as interpreter in this process.
"""

import argparse
import hashlib
import inspect
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saishiki.kernels.ddim_step import BLOCK, _ddim_step_kernel
from saishiki.runtime.backends.cubins import CUBINS, INDEX_NAME, CubinEntry, CubinIndex

SMS = (80, 86, 89, 90, 120)
# Stated because Triton's own defaults differ between versions. PTX 8.7 is the least that knows sm_120.
OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True, "ptx_version": 87}
# Triton adds these to every kernel; both are null, because no kernel here asks for scratch memory.
HIDDEN = (("global_scratch", "null"), ("profile_scratch", "null"))


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time constants chosen: what becomes one cubin per architecture.

    Args:
        signature: Triton's type of each argument that is passed at run time, in their order.
        aligned: arguments that the caller promises to be multiples of 16.
        elements_per_block: the grid is the number of elements over this, rounded up.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, bool | int]
    aligned: tuple[str, ...]
    elements_per_block: int

    def source(self) -> ASTSource:
        """What Triton compiles."""
        names = self.kernel.arg_names
        return ASTSource(
            fn=self.kernel,
            signature={name: self.signature.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in self.constexprs.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned},
        )


def _ddim_step_variant(name: str, *, has_noise: bool) -> Variant:
    pointers = ("x_ptr", "eps_ptr", "noise_ptr", "out_ptr", "coefficients_ptr")
    return Variant(
        name=name,
        kernel=_ddim_step_kernel,
        signature={**dict.fromkeys(pointers, "*fp32"), "k": "i32", "n": "i64"},
        constexprs={"HAS_NOISE": has_noise, "BLOCK": BLOCK},
        aligned=(*pointers, "n"),
        elements_per_block=BLOCK,
    )


VARIANTS = (
    _ddim_step_variant("ddim_step", has_noise=False),
    _ddim_step_variant("ddim_step_noise", has_noise=True),
)


def source_sha256(kernel: Any) -> str:
    """The sha256, in hex, of a kernel's source text; the same under Triton's interpreter."""
    return hashlib.sha256(inspect.getsource(kernel.fn).encode()).hexdigest()


def build_cubin(variant: Variant, sm: int) -> tuple[bytes, CubinEntry]:
    """The cubin of a variant for one compute capability, and its entry in the index."""
    # Line information would carry the paths of this machine into the cubin.
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(variant.source(), target=GPUTarget("cuda", sm, 32), options=OPTIONS)
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
        elements_per_block=variant.elements_per_block,
        threads=32 * OPTIONS["num_warps"],
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


def build_all(output: Path) -> CubinIndex:
    """Writes every cubin and the index into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    entries = []
    for variant in VARIANTS:
        for sm in SMS:
            cubin, entry = build_cubin(variant, sm)
            (output / entry.file).write_bytes(cubin)
            entries.append(entry)
    index = CubinIndex(triton.__version__, OPTIONS, tuple(entries))
    (output / INDEX_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
    return index


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=CUBINS, metavar="DIR", help="default: %(default)s")
    output = parser.parse_args().output
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set; the interpreter compiles nothing: unset it")
    for entry in build_all(output).cubins:
        print(f"{entry.file}: {entry.registers} registers, {entry.spill_bytes} bytes spilled, {entry.arch}")


if __name__ == "__main__":
    main()
