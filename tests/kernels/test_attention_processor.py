"""The attention processor in layers and in a U-Net of diffusers, against diffusers' own attention."""

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")
pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")

from diffusers.models.attention_processor import Attention, AttnProcessor2_0  # noqa: E402

from saishiki.kernels import checks  # noqa: E402
from saishiki.kernels.attention_processor import (  # noqa: E402
    MaskedSplitCrossAttnProcessor,
    RegionProjections,
    mask_of_tokens,
)
from saishiki.kernels.masked_split_cross_attention import SEMANTICS  # noqa: E402
from saishiki.models.beside_cpu_torch import import_beside_cpu_torch  # noqa: E402

UNet2DConditionModel = import_beside_cpu_torch("diffusers.models.unets.unet_2d_condition").UNet2DConditionModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ABOVE, BLEND = "colorizediffusion-v1.5", "colorizediffusion-xl-adapter"
HEIGHT, WIDTH, KEYS = 4, 6, 10
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with torch.inference_mode():
            yield


def make_layer(**options: Any) -> Any:
    return Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16, **options).to(DEVICE).eval()


def make_inputs(batch: int = 2) -> tuple[Any, Any, Any]:
    """Tokens, context and region mask."""
    x, context = torch.randn(batch, HEIGHT * WIDTH, 32), torch.randn(batch, KEYS, 24)
    return x.to(DEVICE), context.to(DEVICE), torch.rand(batch, 1, HEIGHT, WIDTH).to(DEVICE)


def make_projections() -> RegionProjections:
    return RegionProjections(*(torch.randn(32, width, device=DEVICE) * 0.2 for width in (32, 24, 24)))


def attended(layer: Any, x: Any, context: Any, projections: RegionProjections | None = None) -> Any:
    """By diffusers, before the output projection."""
    layer = copy.deepcopy(layer)
    layer.set_processor(AttnProcessor2_0())
    layer.to_out = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    for name in ("to_q", "to_k", "to_v") if projections else ():
        getattr(layer, name).weight = torch.nn.Parameter(getattr(projections, name))
    return layer(x, context)


def both_attentions(layer: Any, x: Any, context: Any, fg: Any = None, bg: Any = None) -> tuple[Any, Any]:
    half = KEYS // 2
    return attended(layer, x, context[:, :half], fg), attended(layer, x, context[:, half:], bg)


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
@pytest.mark.parametrize("regional", [(), ("bg",), ("fg", "bg")], ids=["shared", "background", "both"])
def test_regions_attend_to_their_halves(regional: tuple[str, ...], reference: bool) -> None:
    layer, (x, context, mask) = make_layer(), make_inputs()
    fg, bg = (make_projections() if region in regional else None for region in ("fg", "bg"))
    a_fg, a_bg = both_attentions(layer, x, context, fg, bg)
    layer.set_processor(
        MaskedSplitCrossAttnProcessor(
            ABOVE, threshold=0.4, fg_scale=0.7, bg_scale=1.3, foreground=fg, background=bg, reference=reference
        )
    )
    is_fg = mask.flatten(1)[..., None] > 0.4
    expected = layer.to_out[0](torch.where(is_fg, 0.7 * a_fg, 1.3 * a_bg))
    torch.testing.assert_close(layer(x, context, region_mask=mask), expected, **CLOSE)
    for wrong in (mask.flip(3), mask.transpose(2, 3).reshape(mask.shape), 1 - mask):
        assert (layer(x, context, region_mask=wrong.contiguous()) - expected).abs().max() > 0.01


@pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])
def test_merged_regions_project_every_token_twice(reference: bool) -> None:
    layer, (x, context, mask) = make_layer(), make_inputs()
    fg, bg = make_projections(), make_projections()
    a_fg, a_bg = both_attentions(layer, x, context, fg, bg)
    layer.set_processor(
        MaskedSplitCrossAttnProcessor(
            BLEND, merge_scale=0.3, reference_scale=0.8, foreground=fg, background=bg, reference=reference
        )
    )
    share = mask.flatten(1)[..., None]
    mixed = 0.8 * (share * (0.7 * a_fg + 0.3 * a_bg) + (1 - share) * a_bg)
    torch.testing.assert_close(layer(x, context, region_mask=mask), layer.to_out[0](mixed), **CLOSE)


def test_fp16_keeps_the_mask_in_fp32() -> None:
    layer, (x, context, _) = make_layer().half(), make_inputs()
    steps = torch.randint(-3, 4, (2, 1, HEIGHT, WIDTH), device=DEVICE)
    mask = 0.4 + steps * 2.0**-24
    results = []
    for reference in (False, True):
        layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, threshold=0.4, reference=reference))
        results.append(layer(x.half(), context.half(), region_mask=mask))
    assert results[0].dtype == torch.float16
    torch.testing.assert_close(*results, atol=3e-3, rtol=3e-3)
    rounded = layer(x.half(), context.half(), region_mask=mask.half().float())
    assert (rounded - results[1]).abs().max() > 0.01


def test_without_a_mask_it_is_diffusers_own() -> None:
    layer, (x, context, _) = make_layer(), make_inputs()
    expected = layer(x, context)
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE))
    assert torch.equal(layer(x, context), expected)


def test_without_a_mask_the_reference_scale_acts() -> None:
    layer, (x, context, _) = make_layer(), make_inputs()
    expected = layer.to_out[0](0.6 * attended(layer, x, context))
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, reference_scale=0.6))
    torch.testing.assert_close(layer(x, context), expected, **CLOSE)


def test_self_attention_is_not_masked() -> None:
    layer = Attention(query_dim=32, heads=2, dim_head=16).to(DEVICE).eval()
    x, _, mask = make_inputs()
    expected = layer(x)
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, reference_scale=0.5))
    assert torch.equal(layer(x, region_mask=mask), expected)


def test_rows_of_a_mask_are_repeated_for_guidance() -> None:
    _, _, mask = make_inputs()
    tokens = mask_of_tokens(mask, 4, HEIGHT * WIDTH)
    assert torch.equal(tokens, torch.cat([mask, mask]).flatten(1))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_masks_are_resized_by_bicubic_interpolation(level: int) -> None:
    mask = torch.rand(1, 1, 8, 12)
    got = mask_of_tokens(mask, 1, 96 // 4**level).view(1, 1, 8 >> level, 12 >> level)
    if level == 0:
        assert torch.equal(got, mask)
        return
    # Halving and quartering by plain bicubic interpolation take four taps per axis.
    taps, step = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375]), 2**level
    matrices = []
    for length in (8, 12):
        matrix = torch.zeros(length // step, length)
        for row in range(length // step):
            for tap, weight in enumerate(taps):
                place = step * row + tap - (1 if level == 1 else 0)
                matrix[row, min(max(place, 0), length - 1)] += weight
        matrices.append(matrix)
    torch.testing.assert_close(got, matrices[0] @ mask @ matrices[1].T, atol=1e-6, rtol=1e-6)


def make_unet() -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return unet.to(DEVICE).eval()


def run_unet(unet: Any, mask: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    x, context = torch.randn(2, 4, 8, 12).to(DEVICE), torch.randn(2, KEYS, 24).to(DEVICE)
    kwargs = None if mask is None else {"region_mask": mask}
    return unet(x, 10, context, cross_attention_kwargs=kwargs).sample


@pytest.fixture
def unet() -> Any:
    return make_unet()


def set_processor(unet: Any, **options: Any) -> None:
    unet.set_attn_processor(MaskedSplitCrossAttnProcessor("colorizediffusion-xl", threshold=0.5, **options))


def test_unet_with_a_region_mask(unet: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain, mask = run_unet(unet, None), torch.rand(1, 1, 8, 12).to(DEVICE)
    set_processor(unet)
    assert torch.equal(run_unet(unet, None), plain)
    with caplog.at_level(logging.WARNING):
        masked = run_unet(unet, mask)
    assert not caplog.records
    set_processor(unet, reference=True)
    torch.testing.assert_close(masked, run_unet(unet, mask), **CLOSE)
    assert (run_unet(unet, 1 - mask) - masked).abs().max() > 1e-3
    assert (plain - masked).abs().max() > 1e-3


def test_unet_state_has_no_processor_weights(unet: Any) -> None:
    names = set(unet.state_dict())
    unet.set_attn_processor(MaskedSplitCrossAttnProcessor(ABOVE, background=make_projections()))
    assert set(unet.state_dict()) == names


def test_region_projections_move_with_the_network() -> None:
    layer = make_layer()
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, background=make_projections()))
    assert layer.half().processor.to_q_bg.dtype == torch.float16


def test_a_processor_takes_a_rule_of_ones_own() -> None:
    rule = replace(SEMANTICS[ABOVE], selection="background_below")
    assert MaskedSplitCrossAttnProcessor(rule).arguments["selection"] == "background_below"


def without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "INTERPRETED", False)


def test_on_a_cpu_it_raises_or_is_told_to_use_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (x, context, mask) = make_layer().cpu(), (tensor.cpu() for tensor in make_inputs())
    without_the_interpreter(monkeypatch)
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE))
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, got one on cpu"):
        layer(x, context, region_mask=mask)
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, reference=True))
    assert layer(x, context, region_mask=mask).isfinite().all()


Change = Callable[[dict[str, Any]], None]


def bad_calls() -> list[Any]:
    cases: dict[str, tuple[Change, type[Exception], str]] = {
        "attention mask": (
            lambda call: call.update(attention_mask=torch.zeros(2, 1, KEYS)),
            ValueError,
            "expected no attention mask beside a region mask",
        ),
        "mask in fp16": (
            lambda call: call.update(region_mask=call["region_mask"].half()),
            TypeError,
            "expected region_mask in torch.float32, got torch.float16",
        ),
        "mask of rank 3": (
            lambda call: call.update(region_mask=call["region_mask"][:, 0]),
            ValueError,
            "expected region_mask (B, 1, h, w), got (2, 4, 6)",
        ),
        "mask of two channels": (
            lambda call: call.update(region_mask=call["region_mask"].expand(-1, 2, -1, -1)),
            ValueError,
            "expected region_mask (B, 1, h, w), got (2, 2, 4, 6)",
        ),
        "mask of another size": (
            lambda call: call.update(region_mask=torch.zeros(2, 1, 5, 6)),
            ValueError,
            "expected region_mask to have 24 tokens when halved as the layer is, got 5x6",
        ),
        "mask too small": (
            lambda call: call.update(region_mask=torch.zeros(2, 1, 2, 3)),
            ValueError,
            "expected region_mask to have 24 tokens when halved as the layer is, got 2x3",
        ),
        "mask of three rows": (
            lambda call: call.update(region_mask=torch.zeros(3, 1, 4, 6)),
            ValueError,
            "expected region_mask for 2 rows or a part that is repeated, got 3 rows",
        ),
        "pictures": (
            lambda call: call.update(hidden_states=torch.zeros(2, 32, 4, 6)),
            ValueError,
            "expected hidden states (B, T, C), got (2, 32, 4, 6)",
        ),
        "odd context": (
            lambda call: call.update(encoder_hidden_states=call["encoder_hidden_states"][:, 1:]),
            ValueError,
            "expected an even number of keys",
        ),
    }
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("change", "error", "message"), bad_calls())
def test_bad_calls_are_refused(change: Change, error: type[Exception], message: str) -> None:
    layer, (x, context, mask) = make_layer(), make_inputs()
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE))
    call = {"hidden_states": x, "encoder_hidden_states": context, "region_mask": mask}
    change(call)
    with pytest.raises(error) as caught:
        layer(**call)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"residual_connection": True}, "residual_connection"),
        ({"rescale_output_factor": 2.0}, "rescale_output_factor"),
        ({"norm_num_groups": 4}, "group_norm"),
        ({"spatial_norm_dim": 4}, "spatial_norm"),
        ({"qk_norm": "layer_norm"}, "norm_q, norm_k"),
        ({"cross_attention_norm": "layer_norm"}, "norm_cross"),
        ({"added_kv_proj_dim": 8}, "added_kv_proj_dim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_with_more_than_projections_are_refused(options: dict[str, Any], name: str) -> None:
    layer, (x, context, mask) = make_layer(**options), make_inputs()
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE))
    with pytest.raises(ValueError, match=f"expected a layer with projections alone, got one with {name}$"):
        layer(x, context, region_mask=mask)


def test_region_projections_of_a_layer_with_bias_are_refused() -> None:
    layer, (x, context, mask) = make_layer(bias=True), make_inputs()
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, background=make_projections()))
    with pytest.raises(ValueError, match="expected to_q without a bias where a region has its own projections"):
        layer(x, context, region_mask=mask)


def test_unknown_semantics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected semantics to be one of colorizediffusion-v1, .*, got 'sdxl'"):
        MaskedSplitCrossAttnProcessor("sdxl")


def test_a_layer_compiles_to_one_graph() -> None:
    layer, (x, context, mask) = make_layer(), make_inputs()
    layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, threshold=0.4))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context, region_mask=mask), layer(x, context, region_mask=mask), **CLOSE)


def test_a_layer_exports_to_one_node() -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'saishiki[export]'")
    from saishiki.export.onnx_graph import trace
    from saishiki.runtime.signature import Signature, TensorSpec

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = make_layer().cpu()
            self.attn.set_processor(MaskedSplitCrossAttnProcessor(ABOVE))

        def forward(self, x: Any, context: Any, mask: Any) -> Any:
            return self.attn(x, context, region_mask=mask)

    shapes = {"x": ("2", "6", "32"), "context": ("2", "10", "24"), "mask": ("2", "1", "4", "6"), "y": ("2", "6", "32")}
    *inputs, output = (TensorSpec(name, "float32", dims) for name, dims in shapes.items())
    with torch.inference_mode(False):
        model = trace(Layer(), Signature(tuple(inputs), (output,), {}), {})
    assert [node.op_type for node in model.graph if node.domain == "saishiki"] == ["MaskedSplitCrossAttention"]


def test_importing_it_does_not_import_diffusers() -> None:
    script = "import sys, saishiki.kernels.attention_processor; raise SystemExit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("merge_scale", [0.0, 0.25], ids=["select", "merge"])
def test_a_layer_of_sdxl_on_the_gpu(merge_scale: float) -> None:
    """1024x1024: 64x64 tokens of 640 channels, 392 keys, with a background of its own."""
    assert DEVICE == "cuda"
    layer = Attention(query_dim=640, cross_attention_dim=2048, heads=10, dim_head=64).to(DEVICE).half()
    x, context = torch.randn(2, 64 * 64, 640, device=DEVICE).half(), torch.randn(2, 392, 2048, device=DEVICE).half()
    mask = torch.rand(1, 1, 128, 128, device=DEVICE)
    background = RegionProjections(
        *(torch.randn(640, width, device=DEVICE).half() * 0.02 for width in (640, 2048, 2048))
    )
    options = {"merge_scale": merge_scale, "threshold": 0.5, "background": background}
    results = []
    for reference in (False, True):
        layer.set_processor(MaskedSplitCrossAttnProcessor(ABOVE, reference=reference, **options))
        results.append(layer(x, context, region_mask=mask).float())
    torch.testing.assert_close(*results, atol=2e-3, rtol=2e-3)
    assert (layer(x, context, region_mask=1 - mask) - results[0]).abs().max() > 0.01
