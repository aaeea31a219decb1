"""Choosing and checking engines by the manifest alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saishiki.runtime.backends.engine_choice import PORTABLE, check_engine, choose_engine, choose_profile
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineEntry
from saishiki.runtime.signature import Profile

VERSION = "1.7.1.116"


def entry(fakes: Any, target: str = "sm89", version: str = VERSION, **changes: Any) -> EngineEntry:
    made: EngineEntry = fakes.engine_entry(b"engine", target=target, version=version, **changes)
    return made


def bundle_with(fakes: Any, path: Path, *engines: EngineEntry) -> Bundle:
    made: Bundle = fakes.make_bundle(path, engines)
    return made


def check(bundle: Bundle, engine: EngineEntry, **here: str) -> None:
    check_engine(engine, **{"builder_version": VERSION, "target": "sm89"} | here, bundle=bundle)


def choose(bundle: Bundle, **wanted: Any) -> EngineEntry:
    defaults = {"backend": "tensorrt-rtx", "precision": "fp16", "builder_version": VERSION, "target": "sm89"}
    return choose_engine(bundle, "denoiser", **defaults | wanted)


def test_check_engine_accepts_what_fits(fakes: Any, tmp_path: Path) -> None:
    engine = entry(fakes)
    check(bundle_with(fakes, tmp_path, engine), engine)


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (
            {"builder_version": "1.8.0.1"},
            "its builder_version is 1.7.1.116, installed is 1.8.0.1; rebuild it with: exp",
        ),
        (
            {"target": "sm86"},
            "its target is sm89, this GPU is sm86; rebuild it (for this GPU, add --sm 86) with: export-engines a.ckpt",
        ),
        (
            {"target": "sm90"},
            "its target is sm89, this GPU is sm90, for which TensorRT-RTX builds nothing; use another backend, or",
        ),
    ],
    ids=["version", "target", "target that RTX has not"],
)
def test_check_engine_names_what_differs(fakes: Any, tmp_path: Path, here: dict[str, str], message: str) -> None:
    engine = entry(fakes)
    with pytest.raises(BackendError) as caught:
        check(bundle_with(fakes, tmp_path, engine), engine, **here)
    assert message in str(caught.value)
    assert "engines/denoiser.sm89" in str(caught.value)


def test_check_engine_of_enterprise_tensorrt(fakes: Any, tmp_path: Path) -> None:
    engine = entry(fakes, "sm90", backend="tensorrt")
    bundle = bundle_with(fakes, tmp_path, engine)
    check(bundle, engine, target="sm90")
    with pytest.raises(
        BackendError, match="its target is sm90, this GPU is sm80; rebuild it on this machine with: exp"
    ):
        check(bundle, engine, target="sm80")


@pytest.mark.parametrize("field", ["weights", "graph"])
def test_check_engine_of_another_graph(fakes: Any, tmp_path: Path, field: str) -> None:
    engine = entry(fakes)
    other: dict[str, Any] = {field: "0123"}
    engine = replace(engine, key=replace(engine.key, **other))
    with pytest.raises(BackendError, match=f"its {field} is 0123, the bundle has {field}-hash; rebuild it with: e"):
        check(bundle_with(fakes, tmp_path, engine), engine)


def test_check_engine_without_a_graph_of_its_precision(fakes: Any, tmp_path: Path) -> None:
    engine = entry(fakes)
    engine = replace(engine, key=replace(engine.key, precision="fp32"))
    with pytest.raises(BackendError, match="its weights is weights-hash, the bundle has None"):
        check(bundle_with(fakes, tmp_path, engine), engine)


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm120"])
def test_check_engine_takes_a_portable_engine(fakes: Any, tmp_path: Path, target: str) -> None:
    engine = entry(fakes, target=PORTABLE)
    check(bundle_with(fakes, tmp_path, engine), engine, target=target)


@pytest.mark.parametrize("target", ["sm75", "sm90", "sm100"])
def test_check_engine_knows_where_portable_ends(fakes: Any, tmp_path: Path, target: str) -> None:
    engine = entry(fakes, target=PORTABLE)
    with pytest.raises(BackendError, match=f"its target is portable, this GPU is {target}"):
        check(bundle_with(fakes, tmp_path, engine), engine, target=target)


def test_choose_engine_prefers_this_gpu_then_this_version(fakes: Any, tmp_path: Path) -> None:
    other, portable = entry(fakes, "sm86"), entry(fakes, PORTABLE)
    old, own = entry(fakes, "sm89", "1.6.0.0"), entry(fakes, "sm89")
    assert choose(bundle_with(fakes, tmp_path, other, portable, old, own)) == own
    assert choose(bundle_with(fakes, tmp_path, other, old, portable)) == portable
    assert choose(bundle_with(fakes, tmp_path, other, old)) == old
    assert choose(bundle_with(fakes, tmp_path, other)) == other


def test_choose_engine_names_what_there_is(fakes: Any, tmp_path: Path) -> None:
    message = "no tensorrt-rtx engine of denoiser in fp32, it has tensorrt-rtx sm89 fp16; export again .*: export-e"
    with pytest.raises(BackendError, match=message):
        choose(bundle_with(fakes, tmp_path, entry(fakes)), precision="fp32")


def test_choose_engine_where_there_is_none(fakes: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="it has no engine at all"):
        choose(bundle_with(fakes, tmp_path))


def sizes(height: int, batch: int = 1) -> dict[str, int]:
    return {"batch": batch, "height": height}


PROFILES = (Profile(sizes(64), sizes(128), sizes(512, 4)), Profile(sizes(256), sizes(256), sizes(256)))


@pytest.mark.parametrize(("wanted", "index"), [(sizes(128), 0), (sizes(320, 2), 0), (sizes(256), 1)], ids=str)
def test_choose_profile_prefers_the_one_tuned_for_it(wanted: dict[str, int], index: int) -> None:
    assert choose_profile(PROFILES, wanted) == index


def test_choose_profile_names_sizes_and_profiles() -> None:
    message = r"holds \{'batch': 5, 'height': 64\}; it was built for: batch 1\.\.1\.\.4, height 64"
    with pytest.raises(ValueError, match=message):
        choose_profile(PROFILES, sizes(64, 5))
