"""Every published case of split attention: by the reference, by the Triton kernel, and by the ONNX function.

The cases are found by their kind, so more of a kind are run as they appear. What is around the op is spelled out here,
from the specification of each family: the mask's resizing, the projections and their LoRAs, and the output projection.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from saishiki.kernels.masked_split_cross_attention import (  # noqa: E402
    SEMANTICS,
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
)
from tests.conformance import FOLDER, Case, cases_of  # noqa: E402

FAMILIES = tuple(dict.fromkeys(name.removesuffix("-encoder").removesuffix("-decoder") for name in SEMANTICS))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("block_split_attn", "attn2_mask", "attn2_soft", "attn1_bank")
LORA_OF_XL = "background"


def kind_of(case: Case) -> str | None:
    """By module, or by name where the module is no more than a block."""
    label = case.name if case.module == "block" else case.module
    return next((kind for kind in KINDS if label.startswith(kind)), None)


@dataclass(frozen=True)
class Call:
    """The op's arguments in a case, and what follows it."""

    tensors: Mapping[str, Any]
    options: Mapping[str, Any]
    to_out: tuple[Any, Any]


@cache
def weights_of(folder: Path) -> Mapping[str, Any]:
    return load_file(folder / "tiny.safetensors")


@cache
def head_dim_of(folder: Path) -> int:
    config = json.loads((folder / "cases.json").read_text())["config"]
    return int(config.get("unet", config)["num_head_channels"])


def weight(case: Case, projection: str, lora: str | None) -> Any:
    """Of a projection of the case's layer, with a LoRA or without."""
    weights = weights_of(case.folder)
    key = f"{case.params.get('key') or case.params['layer']}.{projection}"
    found = weights[f"{key}.weight"].float()
    if lora:
        up, down = (weights[f"{key}.lora_{name}_{lora}.weight"].float() for name in ("up", "down"))
        found = found + up @ down
    return found


def loras_of(case: Case) -> tuple[str | None, str | None]:
    """Of the foreground's branch and of the background's."""
    if case.params.get("lora_merged"):
        return LORA_OF_XL, LORA_OF_XL
    return "fg" if case.params.get("lora_fg") else None, "bg" if case.params.get("lora_bg") else None


def semantics_of(case: Case) -> str:
    if case.family != "colorizediffusion-v2":
        return case.family
    return f"{case.family}-{'decoder' if '.output_blocks.' in case.params['key'] else 'encoder'}"


def options_of(case: Case) -> dict[str, Any]:
    params = case.params
    if kind_of(case) == "attn1_bank":
        return {"selection": "foreground_above", "threshold": params["threshold"]}
    names = ("fg_scale", "bg_scale", "merge_scale")
    settings = {name: params[name] for name in names} | {"threshold": params["mask_threshold"]}
    return {**SEMANTICS[semantics_of(case)].arguments(**settings), "reference_scale": params["reference_scale"]}


def contexts_of(case: Case, x: Any) -> tuple[Any, Any]:
    """The foreground's tokens and the background's."""
    if kind_of(case) == "attn1_bank":
        return x, torch.from_numpy(case.inputs["bank"]).expand(len(x), -1, -1)
    fg, bg = torch.from_numpy(case.inputs["context"]).chunk(2, dim=1)
    return fg, bg


def call_of(case: Case) -> Call:
    """Everything in fp32, as the cases were made."""
    inputs, params = case.inputs, case.params
    x = torch.from_numpy(inputs["x" if "x" in inputs else "x_norm"])
    fg, bg = contexts_of(case, x)
    fg_lora, bg_lora = loras_of(case)
    scale = params.get("scale_factor") or params["mask_scale"]
    mask = F.interpolate(
        torch.from_numpy(inputs["mask"]), scale_factor=scale, mode="bicubic", recompute_scale_factor=False
    )
    pairs = {
        name: torch.cat([fg @ weight(case, f"to_{name}", fg_lora).T, bg @ weight(case, f"to_{name}", bg_lora).T], 1)
        for name in "kv"
    }
    q, q_bg = (x @ weight(case, "to_q", lora).T for lora in (fg_lora, bg_lora))
    tensors = {"q": q, **pairs, "mask": mask.expand(len(x), -1, -1, -1).flatten(1)}
    if fg_lora != bg_lora:
        tensors["q_bg"] = q_bg
    bias = weights_of(case.folder)[f"{params.get('key') or params['layer']}.to_out.0.bias"].float()
    options = options_of(case) | {"heads": q.shape[2] // head_dim_of(case.folder), "fg_tokens": fg.shape[1]}
    return Call(
        {name: tensor.to(DEVICE).contiguous() for name, tensor in tensors.items()},
        options,
        (weight(case, "to_out.0", None), bias),
    )


def check(case: Case, call: Call, attended: Any) -> None:
    (name,) = case.outputs
    case.check({name: F.linear(attended.float().cpu(), *call.to_out).numpy()})


def split_cases() -> list[Any]:
    found = []
    for family in FAMILIES:
        cases = [case for case in cases_of(family) if kind_of(case)]
        found += [pytest.param(case, id=f"{family}-{case.name}") for case in cases]
        if not cases:
            reason = f"no conformance cases for {family} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder"
            found.append(pytest.param(None, id=f"{family}-absent", marks=pytest.mark.skip(reason=reason)))
    return found


@pytest.mark.parametrize("case", split_cases())
@pytest.mark.parametrize(
    "op", [masked_split_cross_attention_reference, masked_split_cross_attention], ids=["reference", "kernel"]
)
def test_split_attention_as_published(op: Callable[..., Any], case: Case) -> None:
    call = call_of(case)
    check(case, call, op(**call.tensors, **call.options))


@pytest.mark.parametrize("case", split_cases())
def test_split_attention_as_published_in_onnx(case: Case, tmp_path: Path) -> None:
    call = call_of(case)
    check(case, call, run_in_onnx(call, tmp_path / "call.onnx"))


def run_in_onnx(call: Call, path: Path) -> Any:
    """The call traced, written and run by ONNX Runtime."""
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[export]'")
    from saishiki.export.onnx_graph import trace, write_graph
    from saishiki.runtime.signature import Signature, TensorSpec

    arrays = {name: tensor.cpu().numpy() for name, tensor in call.tensors.items()}
    specs = tuple(TensorSpec(name, "float32", tuple(map(str, array.shape))) for name, array in arrays.items())
    signature = Signature(specs, (replace(specs[0], name="out"),), {})
    write_graph(trace(Traced(call), signature, {}), signature, path)
    (out,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, arrays)
    return torch.from_numpy(out)


class Traced(torch.nn.Module):
    """A call on tensors in the order of its own."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, q: Any, k: Any, v: Any, mask: Any, q_bg: Any = None) -> Any:
        return masked_split_cross_attention(q, k, v, mask, q_bg=q_bg, **self.call.options)


def fails(case: Case, wrong: str) -> bool:
    """Whether a case notices that its semantics are wrong; one with equal regions, or none between 0 and 1, may not."""
    call = call_of(case)
    tensors, options = dict(call.tensors), dict(call.options)
    if wrong == "rule":
        options["selection"] = "foreground_above" if options["selection"] == "blend" else "blend"
    elif wrong == "halves":
        tensors |= {name: tensors[name].roll(options["fg_tokens"], 1) for name in "kv"}
    else:
        options["reference_scale"] = 0.9 * options.get("reference_scale", 1.0)
    try:
        check(case, call, masked_split_cross_attention_reference(**tensors, **options))
    except AssertionError as error:
        return "Not equal to tolerance" in str(error)
    return False


@pytest.mark.parametrize("wrong", ["rule", "halves", "reference_scale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_semantics_fail_a_case(family: str, wrong: str) -> None:
    if not (FOLDER / family).exists():
        pytest.skip(f"no conformance cases for {family} in {FOLDER}; set SAISHIKI_CONFORMANCE to their folder")
    assert any(fails(case, wrong) for case in cases_of(family) if kind_of(case))
