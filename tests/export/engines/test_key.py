import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saishiki.export.engines import Builder, Target, engine_key, hash_of_key, profiles_text
from saishiki.runtime.manifest import EngineKey, FileEntry, GraphEntry
from saishiki.runtime.signature import Profile, Signature, TensorSpec

FIELDS = [field.name for field in dataclasses.fields(EngineKey)]
SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float16", ("batch", "4", "height/8", "width/8")),),
    outputs=(TensorSpec("y", "float16", ("batch", "4", "height/8", "width/8")),),
    multiples={"height": 64, "width": 64},
)
PROFILE = Profile(*({"batch": batch, "height": 256, "width": 256, "tokens": 77} for batch in (1, 2, 4)))
WIDE = Profile(*({"batch": 1, "height": 256, "width": width, "tokens": 77} for width in (256, 320, 512)))

texts = st.text(max_size=8)
keys = st.builds(EngineKey, **dict.fromkeys(FIELDS, texts))


@given(key=keys)
def test_hash_of_key_depends_on_the_fields_alone(key: EngineKey) -> None:
    twin = EngineKey(**dataclasses.asdict(key))
    assert hash_of_key(twin) == hash_of_key(key)
    assert len(hash_of_key(key)) == 64


@given(key=keys, field=st.sampled_from(FIELDS), value=texts)
def test_hash_of_key_changes_with_any_field(key: EngineKey, field: str, value: str) -> None:
    assume(getattr(key, field) != value)
    assert hash_of_key(dataclasses.replace(key, **{field: value})) != hash_of_key(key)


@given(one=keys, other=keys)
def test_hash_of_key_tells_keys_apart(one: EngineKey, other: EngineKey) -> None:
    assert (hash_of_key(one) == hash_of_key(other)) == (one == other)


def test_hash_of_key_is_the_same_in_every_version() -> None:
    """A change of the text that is hashed would orphan every bundle and every cache."""
    key = EngineKey("w", "g", "batch 1", "fp16", "tensorrt_rtx", "1.7.1.116", "sm89")
    assert hash_of_key(key) == "9394c880992c548587fdb30f6d147fb4111390603295230c1ae3cfe1128aa607"


def entry(path: str, sha256: str) -> FileEntry:
    return FileEntry(path, sha256, 1)


def key_of(weights: FileEntry | None) -> EngineKey:
    return engine_key(
        GraphEntry(entry("unet.onnx", "aaa"), weights, nodes=10, opset=23),
        signature=SIGNATURE,
        profiles=(PROFILE,),
        precision="fp16",
        target=Target("tensorrt-rtx", "sm89"),
        builder=Builder("tensorrt_rtx", "1.7.1.116"),
    )


def test_engine_key_names_what_the_engine_depends_on() -> None:
    key = key_of(entry("unet.data", "bbb"))
    assert (key.graph, key.weights) == ("aaa", "bbb")
    assert (key.precision, key.target) == ("fp16", "sm89")
    assert (key.builder, key.builder_version) == ("tensorrt_rtx", "1.7.1.116")
    assert key.profiles == profiles_text(SIGNATURE, (PROFILE,))


def test_engine_key_of_a_graph_that_holds_its_weights() -> None:
    assert key_of(None).weights == "aaa"


def test_profiles_text_can_be_read() -> None:
    text, _, digest = profiles_text(SIGNATURE, (PROFILE, WIDE)).rpartition(" #")
    assert text == "batch 1..2..4, height 256, width 256; batch 1, height 256, width 256..320..512"
    assert len(digest) == 16


def test_profiles_text_ignores_sizes_that_the_module_has_not() -> None:
    longer = Profile(*({**sizes, "tokens": 154} for sizes in (PROFILE.min, PROFILE.opt, PROFILE.max)))
    assert profiles_text(SIGNATURE, (PROFILE, longer)) == profiles_text(SIGNATURE, (PROFILE,))


@pytest.mark.parametrize(
    "dims", [("batch", "4", "height/4", "width/8"), ("batch", "5", "height/8", "width/8")], ids=["symbolic", "static"]
)
def test_profiles_text_changes_with_the_shapes(dims: tuple[str, ...]) -> None:
    other = dataclasses.replace(SIGNATURE, inputs=(TensorSpec("x", "float16", dims),))
    assert profiles_text(other, (PROFILE,)) != profiles_text(SIGNATURE, (PROFILE,))


def test_profiles_text_keeps_the_order() -> None:
    """An engine's profiles are chosen by number."""
    assert profiles_text(SIGNATURE, (PROFILE, WIDE)) != profiles_text(SIGNATURE, (WIDE, PROFILE))
