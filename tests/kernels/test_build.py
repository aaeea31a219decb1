"""The committed cubins: up to date, complete, small, without spills, and reproducible."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
triton: Any = pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import build  # noqa: E402
from saishiki.kernels.variant import SMS  # noqa: E402
from saishiki.runtime.backends.cubins import CUBINS, CubinEntry, read_cubin_index  # noqa: E402

INDEX = read_cubin_index()
MAX_BYTES = 128 * 1024
MAX_SHARED_BYTES = 99 * 1024  # what a block can have on sm86, sm89 and sm120
MAX_FOLDER_BYTES = 8 * 1024 * 1024
PARAMETER_BYTES = {"i32": 4, "i64": 8, "fp32": 4, "null": 8}

each_cubin = pytest.mark.parametrize("cubin", INDEX.cubins, ids=lambda cubin: cubin.file)


def test_index_is_complete() -> None:
    built = [(cubin.name, cubin.target) for cubin in INDEX.cubins]
    assert built == [(variant.name, f"sm{sm}") for variant in build.VARIANTS.values() for sm in variant.sms]
    assert all(set(variant.sms) <= set(SMS) for variant in build.VARIANTS.values())
    assert len(build.VARIANTS) == sum(map(len, build.OPS.values())), "two variants have one name"
    assert all(name.startswith(op) for op, variants in build.OPS.items() for name in (v.name for v in variants))
    assert dict(INDEX.options) == build.OPTIONS
    assert {path.name for path in CUBINS.glob("*.cubin")} == {cubin.file for cubin in INDEX.cubins}


@each_cubin
def test_cubin_is_of_todays_source(cubin: CubinEntry) -> None:
    variant = build.VARIANTS[cubin.name]
    stale = "the kernel has changed since; run: python -m saishiki.kernels.build"
    assert cubin.source_sha256 == build.source_sha256(variant.kernel), stale
    assert dict(cubin.constexprs) == dict(variant.constexprs), stale
    assert cubin.args == (*variant.signature.items(), *build.HIDDEN), stale
    assert (cubin.grid, cubin.aligned, cubin.threads) == (variant.grid, variant.aligned, 32 * variant.num_warps), stale
    assert {name for names, _ in cubin.grid for name in names} <= variant.signature.keys()


@each_cubin
def test_cubin_is_the_file_in_the_index(cubin: CubinEntry) -> None:
    content = (CUBINS / cubin.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == cubin.sha256
    assert len(content) <= MAX_BYTES
    assert not re.findall(rb"/[\w.-]+/[\w.-]+/", content), "the cubin holds paths of the machine that built it"


@each_cubin
def test_cubin_needs_little(cubin: CubinEntry) -> None:
    assert cubin.spill_bytes == 0
    assert cubin.registers <= build.VARIANTS[cubin.name].max_registers
    assert cubin.shared_bytes <= MAX_SHARED_BYTES


def test_cubins_are_small_together() -> None:
    assert sum(path.stat().st_size for path in CUBINS.iterdir()) <= MAX_FOLDER_BYTES


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


def run_build(script: str, cache: Path) -> "subprocess.CompletedProcess[bytes]":
    """Runs a script in a process of its own: under the interpreter nothing can be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", f"from saishiki.kernels import build\n{script}"]
    return subprocess.run(command, env={**environment, "TRITON_CACHE_DIR": str(cache)}, capture_output=True)


@pytest.mark.parametrize("op", build.OPS)
def test_build_gives_the_same_bytes(op: str, tmp_path: Path) -> None:
    if triton.__version__ != INDEX.triton:
        pytest.skip(f"needs triton {INDEX.triton}, which built the cubins; this is {triton.__version__}")
    name = build.OPS[op][-1].name
    done = run_build(
        f"import sys; sys.stdout.buffer.write(build.build_cubin(build.VARIANTS[{name!r}], 90)[0])", tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == (CUBINS / f"{name}.sm90.cubin").read_bytes()


def load_kernel(path: Path, factor: int) -> Any:
    """A kernel that calls another one, from a file of its own."""
    path.write_text(
        "import triton\n@triton.jit\ndef inner(x):\n    return x * "
        f"{factor}\n@triton.jit\ndef outer(x):\n    return inner(x)\n"
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.outer


def test_source_hash_covers_what_a_kernel_calls(tmp_path: Path) -> None:
    doubled, tripled = load_kernel(tmp_path / "doubled.py", 2), load_kernel(tmp_path / "tripled.py", 3)
    assert build.source_sha256(doubled) != build.source_sha256(tripled)
    assert build.source_sha256(doubled) == build.source_sha256(load_kernel(tmp_path / "again.py", 2))


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    build.main()


def test_build_of_one_op_keeps_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = shutil.copytree(CUBINS, tmp_path / "cubins")
    (folder / "left_over.sm80.cubin").write_bytes(b"")
    again = [entry for entry in INDEX.cubins if entry.name.startswith("split_projection")]
    monkeypatch.setattr(build, "build_all", lambda output, names: iter(again))
    monkeypatch.setattr(build.triton, "__version__", INDEX.triton)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run_main(monkeypatch, "split_projection", "-o", str(folder))
    assert read_cubin_index(folder) == INDEX
    assert not (folder / "left_over.sm80.cubin").exists()


def test_build_of_one_op_refuses_another_triton(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build.triton, "__version__", "1.0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "split_projection")
    assert f"was built with triton {INDEX.triton}, this is 1.0; build all ops" in capsys.readouterr().err


def test_build_refuses_an_unknown_op(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "softmax")
    assert "no op softmax; expected some of attention, average_pool, convolution" in capsys.readouterr().err


def test_build_refuses_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "-o", str(tmp_path))
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
