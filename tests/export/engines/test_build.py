import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saishiki.export.engines import EngineBuildError, build_engine
from saishiki.runtime.signature import Profile

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    return tmp_path / "engines" / "engine"


def left_in(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def profile(**sizes: int) -> Profile:
    return Profile(sizes, sizes, sizes)


def test_build_engine_reports_what_is_in_the_file(conv_case: Any, output: Path) -> None:
    report = build_engine(**conv_case.arguments(output))
    assert left_in(output) == ["engine"]
    assert report.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert report.bytes == output.stat().st_size > 0
    assert (report.builder, report.builder_version, report.target) == ("tensorrt_rtx", trt.__version__, "sm89")
    assert report.profiles == 2
    assert report.layers >= 2
    assert (report.attention_ops, report.fused_attentions, report.unfused_attentions) == (0, 0, 0)


def test_build_engine_twice_gives_the_same_but_for_tensor_numbers(conv_case: Any, output: Path) -> None:
    """The builder numbers some tensors in the order of their addresses, which the kernel draws at random."""
    engines, reports = [], []
    for _ in range(2):
        reports.append(build_engine(**conv_case.arguments(output)))
        engines.append(np.frombuffer(output.read_bytes(), np.uint8))
    first, second = (replace(report, seconds=0.0, sha256="") for report in reports)
    assert first == second
    assert np.count_nonzero(engines[0] != engines[1]) < 100


@pytest.mark.parametrize("sm", [75, 120])
def test_build_engine_writes_the_target_into_the_header(conv_case: Any, output: Path, sm: int) -> None:
    target = type(conv_case.target)("tensorrt-rtx", f"sm{sm}")
    header = build_engine(**conv_case.but(target=target).arguments(output)).header
    if header is None:
        pytest.skip(f"the header of TensorRT-RTX {trt.__version__} is not the known one")
    assert (header.sms, header.version) == ((sm,), trt.__version__)


def test_build_engine_fuses_fp16_attention_in_every_profile(attention_case: Any, output: Path) -> None:
    report = build_engine(**attention_case().arguments(output))
    assert (report.attention_ops, report.fused_attentions, report.unfused_attentions) == (1, 2, 0)
    assert report.activation_bytes > 0


def test_build_engine_decomposes_attention_without_a_fused_kernel(attention_case: Any, output: Path) -> None:
    report = build_engine(**attention_case(head_dim=512).arguments(output))
    assert (report.attention_ops, report.fused_attentions, report.unfused_attentions) == (1, 0, 2)


def test_build_engine_expects_no_fused_kernel_for_fp32_attention(attention_case: Any, output: Path) -> None:
    report = build_engine(**attention_case(dtype="float32").arguments(output))
    assert (report.attention_ops, report.unfused_attentions) == (0, 0)


def test_build_engine_merges_profiles_that_are_the_same_for_the_module(conv_case: Any, output: Path) -> None:
    profiles = tuple(profile(batch=1, height=32, width=32, tokens=tokens) for tokens in (77, 154))
    assert build_engine(**conv_case.but(profiles=profiles).arguments(output)).profiles == 1


def error_of(arguments: dict[str, Any]) -> str | None:
    """What the build says when it fails, or None."""
    try:
        build_engine(**arguments)
    except EngineBuildError as error:
        return str(error)
    return None


def test_build_engine_survives_a_crash_of_the_real_builder(attention_case: Any, output: Path) -> None:
    """One tensor as q, k and v crashes TensorRT-RTX 1.7."""
    error = error_of(attention_case(inputs="qqq").arguments(output))
    if error is None:
        pytest.skip(f"TensorRT-RTX {trt.__version__} no longer crashes on this graph")
    assert "attention.onnx for tensorrt-rtx sm89: the builder was killed by SIGSEGV" in error
    assert left_in(output) == []


def worker_after(statement: str) -> tuple[str, ...]:
    """The real worker, after a statement that changes its request or the machine."""
    script = f"""
import io, json, os, sys
request = json.load(sys.stdin.buffer)
{statement}
sys.stdin = io.TextIOWrapper(io.BytesIO(json.dumps(request).encode()))
from saishiki.export.engines import worker
worker.main()
"""
    return (sys.executable, "-c", script)


DIES = "import os, signal, sys; print('about to die', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{})"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            DIES.format("SIGSEGV"),
            r"killed by SIGSEGV \(it is known to crash where Attention.*its last words: about to die",
        ),
        (DIES.format("SIGKILL"), r"killed by SIGKILL \(most often the machine ran out of memory\)"),
        (DIES.format("SIGABRT"), r"killed by SIGABRT; change the graph, or leave the target out"),
        ("raise SystemExit('no such luck')", r"ended with status 1; its last words: no such luck"),
    ],
    ids=["segfault", "out-of-memory", "abort", "exit"],
)
def test_build_engine_says_how_the_worker_died(conv_case: Any, output: Path, script: str, message: str) -> None:
    with pytest.raises(EngineBuildError, match=r"conv\.onnx for tensorrt-rtx sm89: .*" + message):
        build_engine(**conv_case.arguments(output), worker=(sys.executable, "-c", script))
    assert left_in(output) == []


def test_build_engine_keeps_the_old_file_where_the_build_fails(conv_case: Any, output: Path) -> None:
    output.write_bytes(b"the engine before")
    conv_case.onnx.write_bytes(b"not a graph")
    with pytest.raises(EngineBuildError, match=r"the ONNX parser refuses it: .*Failed to parse"):
        build_engine(**conv_case.arguments(output))
    assert (left_in(output), output.read_bytes()) == (["engine"], b"the engine before")


def test_build_engine_names_a_disk_that_is_full(conv_case: Any, output: Path) -> None:
    """The builder itself takes no notice of a write that fails, and reports success."""
    worker = worker_after("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    with pytest.raises(EngineBuildError, match="the engine cannot be written: File too large"):
        build_engine(**conv_case.arguments(output), worker=worker)
    assert left_in(output) == []


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ((), "expected at least one profile, got none"),
        (
            (profile(batch=1, height=32),),
            "expected sizes for batch, height, width in every profile, got batch 1, height 32",
        ),
        ((profile(batch=1, height=33, width=32),), "height must be a positive multiple of 2, got 33"),
    ],
    ids=["none", "symbol-missing", "not-a-multiple"],
)
def test_build_engine_refuses_a_profile_that_does_not_fit(
    conv_case: Any, output: Path, profiles: tuple[Profile, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_engine(**conv_case.but(profiles=profiles).arguments(output))
    assert left_in(output) == []


def test_build_engine_refuses_an_engine_for_another_gpu(conv_case: Any, output: Path) -> None:
    worker = worker_after("request['target']['name'] = 'sm75'")
    error = error_of(conv_case.arguments(output) | {"worker": worker})
    if error is None:
        pytest.skip(f"the header of TensorRT-RTX {trt.__version__} is not the known one")
    assert "the engine is for sm75, not for sm89" in error
    assert left_in(output) == []


def test_build_engine_refuses_a_profile_with_a_broken_length(conv_case: Any, output: Path) -> None:
    case = conv_case.but(
        signature=replace(conv_case.signature, multiples={}), profiles=(profile(batch=1, height=33, width=32),)
    )
    with pytest.raises(ValueError, match="height/2 is not a whole number at"):
        build_engine(**case.arguments(output))
