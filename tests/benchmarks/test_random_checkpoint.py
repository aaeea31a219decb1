import json
from pathlib import Path

import pytest
import torch
from random_checkpoint import main
from random_weights.colorizediffusion import (
    checkpoint_layout,
    scaled_linear_schedule,
    stated_by,
    tiny_config,
    write_random_checkpoint,
)
from random_weights.safetensors_file import write_safetensors
from random_weights.values import fan_in, seeded_values
from safetensors.torch import load_file, save_file

from saishiki.models import CheckpointError, LoadOptions, read_checkpoint
from saishiki.models.colorizediffusion import CONFIGS
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.colorizediffusion.prediction import stated_prediction
from tests.conformance import FOLDER

GENERATIONS = tuple(CONFIGS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("random")
    paths = {generation: folder / f"{generation}.safetensors" for generation in GENERATIONS}
    for generation, path in paths.items():
        write_random_checkpoint(path, tiny_config(generation), image_encoder=True)
    return paths


@pytest.mark.parametrize("generation", GENERATIONS)
def test_checkpoint_loads_strictly_as_what_it_is(checkpoints: dict[str, Path], generation: str) -> None:
    loaded = load(read_checkpoint(checkpoints[generation]), LoadOptions())
    assert loaded.network.config == tiny_config(generation)
    assert loaded.image_encoder is not None
    assert stated_prediction(read_checkpoint(checkpoints[generation])) == "v"


def test_checkpoint_without_one_tensor_does_not_load(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoints["v1"])
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "half.safetensors", metadata=stated_by(tiny_config("v1")))
    with pytest.raises(CheckpointError, match=r"model\.diffusion_model\.out\.2\.bias"):
        load(read_checkpoint(tmp_path / "half.safetensors"), LoadOptions())


def test_every_tensor_is_finite_and_unlike_all_others(checkpoints: dict[str, Path]) -> None:
    tensors = load_file(checkpoints["v2"])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    contents = {tensor.numpy().tobytes() for tensor in tensors.values()}
    assert len(contents) == len(tensors)
    dtypes = {tensor.dtype for name, tensor in tensors.items() if "." in name}
    assert dtypes == {torch.float16}
    assert {tensors[name].dtype for name in scaled_linear_schedule(8)} == {torch.float32}


def test_seed_decides_every_weight(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        write_random_checkpoint(tmp_path / f"{seed}.safetensors", tiny_config("v1"), image_encoder=True, seed=seed)
    given, same, other = (load_file(path) for path in (checkpoints["v1"], *sorted(tmp_path.iterdir())))
    assert all(torch.equal(given[name], same[name]) for name in given)
    assert not any(torch.equal(given[name], other[name]) for name in given if "." in name)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_full_size_layout_is_the_published_one(generation: str) -> None:
    keys = _conformance(generation) / "keys.json"
    if not keys.is_file():
        pytest.skip(f"needs the conformance kit at {keys}")
    published = {name: shape for name, (_, shape) in json.loads(keys.read_text())["full"].items()}
    layout = checkpoint_layout(CONFIGS[generation], image_encoder=False)
    assert {name: list(tensor.shape) for name, tensor in layout.items()} == published


def test_schedule_is_the_published_one() -> None:
    published = _conformance("v2") / "tiny.safetensors"
    if not published.is_file():
        pytest.skip(f"needs the conformance kit at {published}")
    tensors = load_file(published)
    for name, table in scaled_linear_schedule(1000).items():
        assert torch.equal(table, tensors[name]), name


def _conformance(generation: str) -> Path:
    return FOLDER / f"colorizediffusion-{generation}"


@pytest.mark.parametrize("shape", [(48, 64), (48, 16, 3, 3)], ids=str)
def test_seeded_values_keep_the_size_of_what_passes_them(shape: tuple[int, ...]) -> None:
    weight = seeded_values(0)("layer.weight", shape)
    sums = torch.randn(4000, weight[0].numel()) @ weight.flatten(1).T
    assert 0.9 < float(sums.std()) < 1.1


def test_seeded_values_of_norms_and_biases() -> None:
    values = seeded_values(0)
    assert abs(float(values("norm.weight", (4096,)).mean()) - 1) < 0.01
    assert float(values("norm.bias", (4096,)).abs().max()) < 0.2
    assert fan_in("visual.proj", (8, 2)) == 8


def test_write_safetensors_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).float().view(2, 3), "a": torch.ones(3).half(), "empty": torch.zeros(0)}
    layout = {name: tensor.to("meta") for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", layout, tensors.__getitem__, metadata={"said": "so"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_checkpoint(tmp_path / "x.safetensors").metadata["said"] == "so"


def test_write_safetensors_leaves_nothing_where_a_value_does_not_fit(tmp_path: Path) -> None:
    layout = {"a": torch.ones(3, device="meta")}
    with pytest.raises(ValueError, match=r"a: expected torch\.float32 \[3\], got torch\.float32 \[4\]"):
        write_safetensors(tmp_path / "x.safetensors", layout, lambda _: torch.ones(4), metadata={})
    assert list(tmp_path.iterdir()) == []


def test_main_writes_a_tiny_one_as_published_without_an_image_encoder(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    main(["v1", "--tiny", "-o", str(path)])
    loaded = load(read_checkpoint(path), LoadOptions())
    assert loaded.image_encoder is None
    assert loaded.network.config.vae == tiny_config("v1").vae


def test_main_refuses_an_absent_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["v1", "-o", str(tmp_path / "absent" / "a.safetensors")])
    assert ended.value.code == 2
    assert "no folder" in capsys.readouterr().err
