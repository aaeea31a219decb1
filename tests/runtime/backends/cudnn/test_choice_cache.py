"""Kept choices: found by content, compared before use, written completely or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.choice_cache import (
    Choice,
    ChoiceCache,
    Circumstances,
    Failure,
    Timing,
)
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.matmul import Matmul

HERE = Circumstances("NVIDIA H200", 90, 132, "9.19.0", "1.22.1", 2**25)
OPERATIONS = [
    Convolution(1, 8, 8, 8, 8, (3, 3), 1, (1, 1, 1, 1), residual=True),
    Matmul(77, 1024, 320),
    Attention(1, 4, 1024, 1024, 128, 128**-0.5),
]
CHOICE = Choice("eng10", (Timing("eng41", 0.1, 131), Timing("eng10", 1 / 30, 0)), (Failure("eng0", "why not"),))


@pytest.fixture
def cache(tmp_path: Path) -> ChoiceCache:
    return ChoiceCache(HERE, tmp_path)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
def test_what_is_written_is_read(cache: ChoiceCache, operation: Convolution) -> None:
    assert cache.read(operation) is None
    cache.write(operation, CHOICE)
    assert cache.read(operation) == CHOICE
    assert [cache.read(other) for other in OPERATIONS if other != operation] == [None, None]


def test_a_folder_per_circumstances_a_file_per_operation(cache: ChoiceCache, tmp_path: Path) -> None:
    for operation in OPERATIONS:
        cache.write(operation, CHOICE)
        cache.write(operation, CHOICE)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("NVIDIA-H200-sm90-132-cudnn-9.19.0-frontend-1.22.1-")
    files = sorted(path.name for path in folder.iterdir())
    assert [name.partition("-")[0] for name in files] == ["attention", "convolution", "matmul"]


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA H100"},
        {"sm": 100},
        {"multiprocessors": 60},
        {"cudnn": "9.19.1"},
        {"frontend": "1.27.0"},
        {"workspace_limit_bytes": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_circumstances_have_no_choice(cache: ChoiceCache, tmp_path: Path, change: dict[str, object]) -> None:
    other = ChoiceCache(replace(HERE, **change), tmp_path)
    cache.write(OPERATIONS[0], CHOICE)
    assert other.read(OPERATIONS[0]) is None
    # Not even where its file lies in their place.
    other.folder.mkdir()
    cache.path(OPERATIONS[0]).rename(other.path(OPERATIONS[0]))
    assert other.read(OPERATIONS[0]) is None


def test_a_file_about_another_operation_is_not_used(cache: ChoiceCache) -> None:
    cache.write(OPERATIONS[0], CHOICE)
    other = replace(OPERATIONS[0], residual=False)
    cache.path(OPERATIONS[0]).rename(cache.path(other))
    assert cache.read(other) is None


def edited(edit: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        entry = json.loads(content)
        edit(entry)
        return json.dumps(entry).encode()

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "another digit": lambda content: content.replace(b"131", b"132"),
    "not JSON": lambda content: b"\xff" + content,
    "a field less": edited(lambda entry: entry["choice"].pop("timings")),
    "a wrong type": edited(lambda entry: entry["choice"].update(timings="fast")),
    "another engine": edited(lambda entry: entry["choice"].update(engine="eng41")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_counts_as_absent(
    cache: ChoiceCache, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    cache.write(OPERATIONS[0], CHOICE)
    path = cache.path(OPERATIONS[0])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert cache.read(OPERATIONS[0]) is None
    assert "engines are timed anew" in caplog.text
    cache.write(OPERATIONS[0], CHOICE)
    assert cache.read(OPERATIONS[0]) == CHOICE


def test_an_interrupted_write_leaves_the_old_file(cache: ChoiceCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(OPERATIONS[0], CHOICE)
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.write(OPERATIONS[0], replace(CHOICE, engine="eng41"))
    assert cache.read(OPERATIONS[0]) == CHOICE


def test_a_cache_that_cannot_be_written_is_only_slower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = ChoiceCache(HERE, tmp_path / "file")
    cache.write(OPERATIONS[0], CHOICE)
    assert "cannot be written" in caplog.text
    assert cache.read(OPERATIONS[0]) is None
