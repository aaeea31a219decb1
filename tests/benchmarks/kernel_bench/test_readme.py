"""The code in ``kernels/README.md`` runs as it stands there."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends import cuda  # noqa: E402
from saishiki.runtime.backends.cubins import find_cubin, grid_of, packed_arguments, read_cubin_index  # noqa: E402
from saishiki.runtime.backends.device import Memory  # noqa: E402

README = Path(__file__).parents[3] / "kernels" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
TORCH_FREE = [block for block in BLOCKS if "CudaDevice" in block]
WITH_DIFFUSERS = [block for block in BLOCKS if "diffusers" in block]
WITH_TORCH = [block for block in BLOCKS if block not in TORCH_FREE + WITH_DIFFUSERS]


def test_the_code_with_pytorch_runs_in_its_order() -> None:
    names: dict[str, Any] = {}
    for block in WITH_TORCH:
        exec(block, names)
    assert len(WITH_TORCH) == 8
    assert names["out"].shape == (1, 20, 64)
    assert names["q"].shape == (1, 20, 64)
    assert names["y"].shape == names["u"].shape == (1, 64, 12, 10)
    assert names["z"].shape == (1, 16, 6, 5)
    assert names["gathered"].shape == (1, 20, 64)
    results = [names[name] for name in ("out", "q", "x", "model_input", "y", "u", "z", "gathered")]
    assert all(result.isfinite().all() for result in results)


def test_the_code_with_diffusers_runs() -> None:
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    names: dict[str, Any] = {}
    (block,) = WITH_DIFFUSERS
    exec(WITH_TORCH[0] + block, names)
    assert names["attended"].shape == (1, 64, 64)
    assert names["attended"].isfinite().all()


class NoDevice:
    """Takes launches as a GPU would, as far as the index of cubins says what it takes."""

    def __init__(self, ordinal: int) -> None:
        self.launched: list[str] = []
        self.taken = 0

    def allocate(self, nbytes: int) -> Memory:
        self.taken += 256 * -(-nbytes // 256)
        return Memory(self.taken, nbytes, None)

    def upload(self, memory: Memory, array: np.ndarray) -> None:
        assert array.nbytes == memory.nbytes

    def launch(self, name: str, **arguments: int | float) -> None:
        for target in ("sm80", "sm86", "sm89", "sm90", "sm120"):
            entry = find_cubin(read_cubin_index(), name, target)
            packed_arguments(entry, arguments)
            assert grid_of(entry, arguments) == (32,)
        self.launched.append(name)

    def synchronize(self) -> None:
        assert self.launched


def test_the_code_without_pytorch_passes_what_the_cubins_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CudaDevice", NoDevice)
    (block,) = TORCH_FREE
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["device"].launched == ["fused_sampler_step_g1_fp16"]
    assert "torch" not in block


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert len(targets) >= 8
    assert [target for target in targets if not (README.parent / target).exists()] == []
    anchors = re.findall(r"\(#(\w+)\)", README.read_text())
    assert all(f"## {anchor}\n" in README.read_text() for anchor in anchors)


def test_the_pictures_state_the_tiles_that_are_compiled() -> None:
    from saishiki.kernels.fused_sampler_step import VARIANTS as SAMPLER
    from saishiki.kernels.group_norm_silu import VARIANTS as NORM
    from saishiki.kernels.split_projection import VARIANTS as PROJECTION

    (block,) = {variant.constexprs["BLOCK"] for variant in SAMPLER}
    tile = PROJECTION[0].constexprs
    (pixels, channels), *others = {
        (variant.constexprs["BLOCK_P"], variant.constexprs["BLOCK_C"])
        for variant in NORM
        if variant.name.startswith("group_norm_silu_statistics")
    }
    assert not others
    stated = {
        "fused_sampler_step": [f"{block} numbers in registers"],
        "split_projection": [f"tiles of {tile['BLOCK_M']} tokens by {tile['BLOCK_N']} channels"],
        "group_norm_silu": [f"in tiles of {pixels} pixels", f"by {channels} channels;"],
        "masked_split_cross_attention": ["never read, never computed"],
    }
    for name, phrases in stated.items():
        words = " ".join(ElementTree.parse(README.parent / "pictures" / f"{name}.svg").getroot().itertext())
        assert all(phrase in words for phrase in phrases), (name, phrases)
