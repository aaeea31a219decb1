"""Builds engines, each in a process of its own, because the builder can crash."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from saishiki.export.child_process import how_it_ended
from saishiki.export.engines.header import contradiction
from saishiki.export.engines.request import (
    ANSWER_NAME,
    ENGINE_NAME,
    WAY_OUT,
    BuildAnswer,
    BuildReport,
    BuildRequest,
    EngineBuildError,
)
from saishiki.export.engines.target import Target, installed_builder
from saishiki.runtime.signature import Profile, Signature, profiles_for

# -P: like this process, the worker must not import what happens to lie in the working directory.
WORKER = (sys.executable, "-P", "-m", "saishiki.export.engines.worker")

_ADVICE = {
    signal.SIGSEGV: "it is known to crash where Attention operators share an input, or one takes a tensor twice",
}
_STDERR_LINES = 5


def build_engine(
    onnx: Path,
    *,
    signature: Signature,
    profiles: tuple[Profile, ...],
    target: Target,
    output: Path,
    worker: Sequence[str] = WORKER,
) -> BuildReport:
    """Builds the engine of an ONNX graph into ``output``, which appears complete or not at all.

    Two builds may differ in a few bytes: TensorRT-RTX numbers some tensors in the order of their addresses.

    Args:
        profiles: the ranges of sizes that the engine is for; several narrow ones need less memory than a wide one.
        worker: the command that builds.

    Raises ``ValueError`` for profiles that do not fit the signature, ``BackendError`` where the builder is missing, and
    ``EngineBuildError`` where it refuses the graph or crashes.
    """
    installed_builder(target)
    for profile in profiles:
        _check_profile(signature, profile)
    profiles = profiles_for(signature, profiles)
    if not profiles:
        raise ValueError("expected at least one profile, got none")
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        request = BuildRequest(str(onnx.absolute()), str(Path(folder).absolute()), signature, profiles, target)
        report = _checked(_report_of(request, worker), onnx, target)
        os.replace(Path(folder) / ENGINE_NAME, output)
    return report


def _check_profile(signature: Signature, profile: Profile) -> None:
    if not profile.opt.keys() >= set(signature.symbols):
        raise ValueError(f"expected sizes for {', '.join(signature.symbols)} in every profile, got {profile}")
    for corner in profile.corners():
        signature.check_sizes(corner)
        for spec in signature.inputs + signature.outputs:
            spec.shape(corner)


def _report_of(request: BuildRequest, worker: Sequence[str]) -> BuildReport:
    done = subprocess.run(worker, input=msgspec.json.encode(request), capture_output=True, check=False)
    if done.returncode:
        raise EngineBuildError(f"{_subject(request.onnx, request.target)}: {_death(done.returncode, done.stderr)}")
    answer = msgspec.json.decode((Path(request.folder) / ANSWER_NAME).read_bytes(), type=BuildAnswer)
    if answer.report is None:
        raise EngineBuildError(f"{_subject(request.onnx, request.target)}: {answer.error}")
    return answer.report


def _checked(report: BuildReport, onnx: Path, target: Target) -> BuildReport:
    if report.header and (wrong := contradiction(report.header, sm=target.sm, version=report.builder_version)):
        raise EngineBuildError(f"{_subject(onnx, target)}: {wrong}")
    return report


def _subject(onnx: Path | str, target: Target) -> str:
    return f"no engine of {onnx} for {target}"


def _death(returncode: int, stderr: bytes) -> str:
    """What became of the worker, why it may have, and the last that it said."""
    lines = stderr.decode(errors="replace").strip().splitlines()[-_STDERR_LINES:]
    last_words = f"; its last words: {' | '.join(lines)}" if lines else ""
    way_out = f"; {WAY_OUT}" if returncode < 0 else ""
    return f"the builder {how_it_ended(returncode, _ADVICE)}{way_out}{last_words}"
