"""Reading the conformance cases: inputs, published outputs and tolerances of every family."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Arrays = Mapping[str, np.ndarray]

FOLDER = Path(os.environ.get("SAISHIKI_CONFORMANCE", Path(__file__).parents[2] / "shared" / "conformance"))
FAMILIES = (
    "animediffusion",
    "colorizediffusion-v1",
    "colorizediffusion-v1.5",
    "colorizediffusion-v2",
    "colorizediffusion-xl",
    "colorizediffusion-xl-adapter",
    "psc-diffusion",
)


@dataclass(frozen=True)
class Case:
    """One case of a family's ``cases.json``."""

    folder: Path
    entry: Mapping[str, Any]

    @property
    def family(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def module(self) -> str:
        return str(self.entry["module"])

    @property
    def params(self) -> Mapping[str, Any]:
        return self.entry.get("params", {})

    @property
    def inputs(self) -> Arrays:
        """By argument; a picture that is stored as pixels is what the network is given: fp32 in [-1, 1]."""
        stored = {argument: _tensors(self.folder)[name] for argument, name in self.entry["inputs"].items()}
        return stored | {name: _normalized(stored[name]) for name in self.entry.get("u8_image_inputs", ())}

    @property
    def outputs(self) -> Arrays:
        return {result: _tensors(self.folder)[name] for result, name in self.entry["outputs"].items()}

    def check(self, got: Arrays) -> None:
        """Asserts that the results are the published ones, as the tolerance note of the cases says."""
        for result, want in self.outputs.items():
            assert result in got, f"{self.name}: the runner gave {sorted(got)}, without {result}"
            self._check_one(result, np.asarray(got[result]), want)

    def _check_one(self, result: str, got: np.ndarray, want: np.ndarray) -> None:
        assert got.shape == want.shape, f"{result}: {got.shape} instead of {want.shape}"
        if want.dtype == np.uint8:
            allowed, share = self._levels(result)
            difference = np.abs(got.astype(int) - want.astype(int))
            found = float((difference > allowed).mean())
            assert found <= share, f"{result}: {found:.4%} of the levels differ by more than {allowed:g}"
        elif want.dtype.kind == "i":
            np.testing.assert_array_equal(got, want, err_msg=result)
        else:
            tolerance = self.entry.get("tol", {}).get(result, self.entry)
            np.testing.assert_allclose(got, want, atol=tolerance["atol"], rtol=tolerance["rtol"], err_msg=result)

    def _levels(self, result: str) -> tuple[float, float]:
        """How many of 255 levels a pixel may be off, and what share of them may be off by more."""
        if "tol" in self.entry:
            return self.entry["tol"][result]["atol"], 0.0
        return self.entry.get("u8_atol", 0), self.entry.get("max_mismatch_fraction", 0.0)


def _normalized(pixels: np.ndarray) -> np.ndarray:
    """(u8 / 255 - 0.5) / 0.5 in fp32."""
    return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


@cache
def _tensors(folder: Path) -> Arrays:
    return load_file(folder / "cases.safetensors")


def cases_of(family: str) -> Iterator[Case]:
    """Every case of a family; none where the folder is absent."""
    path = FOLDER / family / "cases.json"
    if path.is_file():
        for entry in json.loads(path.read_text())["cases"]:
            yield Case(path.parent, entry)


def families() -> tuple[str, ...]:
    """The families to walk: all known ones, and any other folder with cases."""
    found = {path.parent.name for path in FOLDER.glob("*/cases.json")}
    return (*FAMILIES, *sorted(found - set(FAMILIES)))
