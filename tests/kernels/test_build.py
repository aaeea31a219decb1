"""The committed cubins: up to date, complete, small, without spills, and reproducible."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
triton: Any = pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import build  # noqa: E402
from saishiki.runtime.backends.cubins import CUBINS, CubinEntry, read_cubin_index  # noqa: E402

INDEX = read_cubin_index()
MAX_REGISTERS = 48  # at 128 threads a block, up to 12 blocks on a multiprocessor
MAX_BYTES = 16 * 1024
PARAMETER_BYTES = {"i32": 4, "i64": 8, "fp32": 4, "null": 8}

each_cubin = pytest.mark.parametrize("cubin", INDEX.cubins, ids=lambda cubin: cubin.file)


def test_index_is_complete() -> None:
    built = [(cubin.name, cubin.target) for cubin in INDEX.cubins]
    assert built == [(variant.name, f"sm{sm}") for variant in build.VARIANTS for sm in build.SMS]
    assert dict(INDEX.options) == build.OPTIONS
    assert {path.name for path in CUBINS.glob("*.cubin")} == {cubin.file for cubin in INDEX.cubins}


@each_cubin
def test_cubin_is_of_todays_source(cubin: CubinEntry) -> None:
    (variant,) = (variant for variant in build.VARIANTS if variant.name == cubin.name)
    stale = "the kernel has changed since; run: python -m saishiki.kernels.build"
    assert cubin.source_sha256 == build.source_sha256(variant.kernel), stale
    assert dict(cubin.constexprs) == dict(variant.constexprs), stale
    assert cubin.args == (*variant.signature.items(), *build.HIDDEN), stale


@each_cubin
def test_cubin_is_the_file_in_the_index(cubin: CubinEntry) -> None:
    content = (CUBINS / cubin.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == cubin.sha256
    assert len(content) <= MAX_BYTES
    assert not re.findall(rb"/[\w.-]+/[\w.-]+/", content), "the cubin holds paths of the machine that built it"


@each_cubin
def test_cubin_needs_little(cubin: CubinEntry) -> None:
    assert cubin.spill_bytes == 0
    assert cubin.registers <= MAX_REGISTERS
    assert cubin.shared_bytes <= 48 * 1024  # more would need an attribute that the launcher does not set


@each_cubin
def test_cubin_takes_what_the_index_says(cubin: CubinEntry) -> None:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("needs the cuobjdump that comes with triton")
    dump = subprocess.run([tool, "-elf", CUBINS / cubin.file], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Ordinal : (0x\w+)\s+Offset  : (0x\w+)\s+Size    : (0x\w+)", dump)
    sizes = [int(size, 16) for _, _, size in sorted(found, key=lambda row: int(row[0], 16))]
    assert sizes == [8 if kind.startswith("*") else PARAMETER_BYTES[kind] for _, kind in cubin.args]
    assert f".text.{cubin.entry}" in dump


def test_build_gives_the_same_bytes(tmp_path: Path) -> None:
    if triton.__version__ != INDEX.triton:
        pytest.skip(f"needs triton {INDEX.triton}, which built the cubins; this is {triton.__version__}")
    # A process of its own: under the interpreter nothing can be compiled.
    code = (
        "import sys; from saishiki.kernels import build\n"
        "cubin, entry = build.build_cubin(build.VARIANTS[1], 90)\n"
        "sys.stdout.buffer.write(cubin)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == (CUBINS / "ddim_step_noise.sm90.cubin").read_bytes()


def test_build_refuses_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["build", "-o", str(tmp_path)])
    with pytest.raises(SystemExit):
        build.main()
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
