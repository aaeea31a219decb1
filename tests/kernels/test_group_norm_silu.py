"""GroupNorm and SiLU against the reference in fp64, on the GPU or under Triton's interpreter."""

import importlib
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.group_norm_silu import (  # noqa: E402
    VARIANTS,
    group_norm_silu,
    group_norm_silu_reference,
)
from saishiki.kernels.group_norm_silu.launch import (  # noqa: E402
    Input,
    Workspace,
    apply,
    compute_statistics,
    new_workspace,
    plan_chunks,
)
from saishiki.models.animediffusion.network import AnimeDiffusionConfig, UNet  # noqa: E402
from saishiki.runtime.backends import group_norm_tiles  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-5
FLOOR = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

# The interpreter's numpy says so where SiLU takes exp(-y) of a very negative y; the result is 0, as it should be.
pytestmark = [
    pytest.mark.usefixtures("nan_in_new_memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def draw(shape: tuple[int, ...], dtype: Any, *, scale: float = 1.0, mean: float = 0.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale + mean).to(dtype).to(DEVICE)


def image(shape: tuple[int, ...], dtype: Any, layout: Any, **distribution: Any) -> Any:
    return draw(shape, dtype, **distribution).contiguous(memory_format=layout)


def case(
    shape: tuple[int, int, int, int],
    dtype: Any = torch.float32,
    layout: Any = torch.contiguous_format,
    *,
    groups: int = 2,
    concat: int = 0,
    upsample: bool = False,
    residual: bool = False,
    embedding: Any = None,
    sums: bool = False,
    vectors: Any = torch.float32,
    mean: float = 0.5,
    scale: float = 2.0,
    **flags: bool,
) -> dict[str, Any]:
    """Arguments of ``group_norm_silu``. concat: its channels; embedding: its dtype; vectors: weight's and bias's."""
    batch, channels, height, width = shape
    channels += concat
    factor = 2 if upsample else 1
    arguments: dict[str, Any] = {
        "x": image(shape, dtype, layout, mean=mean, scale=scale),
        "weight": draw((channels,), vectors, mean=1.0, scale=0.3, seed=1),
        "bias": draw((channels,), vectors, seed=2),
        "groups": groups,
        "eps": EPS,
        "upsample": upsample,
        **flags,
    }
    if concat:
        full = (batch, concat, factor * height, factor * width)
        arguments["concat"] = image(full, dtype, layout, mean=-1.0, seed=3)
    if residual:
        full = (batch, channels, factor * height, factor * width)
        arguments["residual"] = image(full, dtype, layout, scale=0.7, seed=4)
    if embedding is not None:
        arguments["embedding"] = draw((batch, channels), embedding, seed=5)
    if sums:
        u = exact_input(arguments)
        arguments["sums"] = torch.stack([u.sum((2, 3)), (u * u).sum((2, 3))], dim=-1).float()
    return arguments


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if torch.is_tensor(value) else value for name, value in arguments.items()}


def exact_input(arguments: dict[str, Any]) -> Any:
    """u in fp64, written on its own: pixels are repeated by indexing."""
    exact = doubled(arguments)
    u = exact["x"]
    if exact["upsample"]:
        rows, columns = (torch.arange(2 * size, device=u.device) // 2 for size in u.shape[2:])
        u = u[:, :, rows][:, :, :, columns]
    if "concat" in exact:
        u = torch.cat([u, exact["concat"]], 1)
    if "residual" in exact:
        u = u + exact["residual"]
    if "embedding" in exact:
        u = u + exact["embedding"][:, :, None, None]
    return u


def exact_moments(u: Any, groups: int) -> Any:
    """(B, groups, 2) fp64: mean and 1 / sqrt(variance + eps)."""
    numbers = u.double().reshape(u.shape[0], groups, -1)
    mean = numbers.mean(-1, keepdim=True)
    variance = ((numbers - mean) ** 2).mean(-1, keepdim=True)
    return torch.cat([mean, (variance + EPS) ** -0.5], -1)


def errors(out: Any, arguments: dict[str, Any]) -> tuple[float, float]:
    """The largest error of a normalised image against fp64, and what it may be: twice torch's own and a floor."""
    truth = group_norm_silu_reference(**doubled({**arguments, "return_input": False}))
    plain = group_norm_silu_reference(**{**arguments, "return_input": False})
    assert isinstance(truth, torch.Tensor)
    assert isinstance(plain, torch.Tensor)
    budget = 2 * (plain - truth).abs().max().item() + FLOOR * max(1.0, truth.abs().max().item())
    return (out - truth).abs().max().item(), budget


def assert_as_good_as_torch(arguments: dict[str, Any]) -> None:
    result = group_norm_silu(**arguments)
    out, u = result if isinstance(result, tuple) else (result, None)
    images = [arguments[name] for name in ("x", "concat", "residual") if name in arguments]
    for image_out in (out,) if u is None else (out, u):
        assert image_out.dtype == arguments["x"].dtype
        assert not image_out.isnan().any()
        for layout in LAYOUTS.values():
            if all(tensor.is_contiguous(memory_format=layout) for tensor in images):
                assert image_out.is_contiguous(memory_format=layout)
                break
    error, budget = errors(out, arguments)
    assert error <= budget
    assert (u is not None) == arguments.get("return_input", False)
    if u is not None:
        # Summed in fp32, then rounded once: in fp16 and bf16 nothing can be nearer.
        truth = exact_input(arguments)
        nearest = (truth.to(u.dtype).double() - truth).abs().max().item()
        assert (u - truth).abs().max().item() <= nearest * 1.001 + FLOOR * max(1.0, truth.abs().max().item())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no silu": {"silu": False},
    "vectors": {"vectors": "own"},
    "concat": {"concat": 6},
    "upsample": {"upsample": True},
    "residual": {"residual": True},
    "embedding": {"embedding": torch.float32},
    "embedding in x's dtype": {"embedding": "own"},
    "input": {"return_input": True},
    "sums": {"sums": True},
    "upsample, residual": {"upsample": True, "residual": True},
    "upsample, embedding": {"upsample": True, "embedding": torch.float32, "silu": False},
    "concat, upsample, input": {"concat": 6, "upsample": True, "return_input": True},
    "concat, embedding, sums": {"concat": 2, "embedding": torch.float32, "sums": True, "return_input": True},
    "concat, upsample, sums": {"concat": 6, "upsample": True, "sums": True},
    "upsample, residual, sums": {"upsample": True, "residual": True, "sums": True},
    "all": {
        "concat": 30,
        "upsample": True,
        "residual": True,
        "embedding": "own",
        "return_input": True,
        "vectors": "own",
    },
}


def pairs() -> list[Any]:
    """Every option in every dtype and in both layouts; the product of all three is for the GPU."""
    cases = []
    for i, (name, options) in enumerate(OPTIONS.items()):
        for j, (dtype_name, dtype) in enumerate(DTYPES.items()):
            layout_name = list(LAYOUTS)[(i + j) % 2]
            cases.append(pytest.param(options, dtype, LAYOUTS[layout_name], id=f"{name}-{dtype_name}-{layout_name}"))
    return cases


@pytest.mark.parametrize(("options", "dtype", "layout"), pairs())
def test_group_norm_silu_is_as_good_as_torch(options: dict[str, Any], dtype: Any, layout: Any) -> None:
    own = {name: dtype if value == "own" else value for name, value in options.items()}
    assert_as_good_as_torch(case((2, 10, 5, 7), dtype, layout, **own))


SHAPES = [
    ((1, 1, 1, 1), 1),
    ((1, 1, 9, 7), 1),
    ((2, 6, 5, 7), 2),
    ((3, 32, 3, 3), 32),
    ((2, 96, 1, 1), 32),
    ((1, 33, 9, 11), 1),  # one group in two blocks
    ((1, 10, 4, 4), 10),
    ((1, 40, 13, 17), 4),  # groups of ten channels; several tiles and chunks
    ((2, 68, 6, 5), 4),  # of seventeen, two of them in two blocks
    ((1, 200, 5, 5), 2),  # each group in four blocks
    ((1, 80, 2, 3), 1),
    ((1, 64, 16, 20), 32),  # what the cubins are for
    ((1, 72, 3, 65), 3),
]


@each_layout
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_group_norm_silu_of_any_shape(shape: tuple[int, int, int, int], groups: int, layout: Any) -> None:
    assert_as_good_as_torch(case(shape, torch.float32, layout, groups=groups))


@pytest.mark.parametrize("channels", [320, 960])
def test_group_norm_silu_of_wide_images(channels: int) -> None:
    assert_as_good_as_torch(case((1, channels, 2, 3), torch.float16, torch.channels_last, groups=32, concat=channels))


DISTRIBUTIONS = {
    "mean 1e3": (torch.float32, 1e3, 1.0),
    "mean 1e4": (torch.float32, 1e4, 1.0),
    "mean -1e4, deviation 0.1": (torch.float32, -1e4, 0.1),
    "fp16, 1000 +- 5": (torch.float16, 1000.0, 5.0),
    "bf16, 200 +- 3": (torch.bfloat16, 200.0, 3.0),
    "tiny": (torch.float32, 0.0, 1e-4),
    "tiny about 1": (torch.float32, 1.0, 1e-5),
    "huge": (torch.float32, 0.0, 1e12),
}


@each_layout
@pytest.mark.parametrize(("dtype", "mean", "scale"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_group_norm_silu_of_a_large_mean(dtype: Any, mean: float, scale: float, layout: Any) -> None:
    assert_as_good_as_torch(case((2, 8, 15, 11), dtype, layout, mean=mean, scale=scale))


@pytest.mark.parametrize("distribution", ["mean 1e4", "fp16, 1000 +- 5"])
def test_group_norm_silu_of_a_large_mean_across_blocks(distribution: str) -> None:
    dtype, mean, scale = DISTRIBUTIONS[distribution]
    shape = (1, 200, 5, 7)
    assert_as_good_as_torch(case(shape, dtype, torch.channels_last, groups=20, mean=mean, scale=scale))


def test_a_variance_from_squares_would_fail_here() -> None:
    """The budget of a large mean is tight enough to refuse E[u^2] - E[u]^2 in fp32."""
    arguments = case((2, 8, 15, 11), mean=1e4, scale=1.0)
    group_norm = group_norm_silu(**{**arguments, "sums": case((2, 8, 15, 11), mean=1e4, scale=1.0, sums=True)["sums"]})
    error, budget = errors(group_norm, arguments)
    assert error > 10 * budget


@each_dtype
def test_group_norm_silu_of_a_constant(dtype: Any) -> None:
    arguments = case((1, 6, 9, 10), dtype)
    arguments["x"].fill_(100.1)
    expected = torch.nn.functional.silu(arguments["bias"].double())[None, :, None, None].expand(1, 6, 9, 10)
    out = group_norm_silu(**arguments)
    torch.testing.assert_close(out.double(), expected, rtol=4e-6 + torch.finfo(dtype).eps, atol=1e-6)


def test_group_norm_silu_of_one_outlier() -> None:
    arguments = case((1, 4, 16, 16), mean=0.01, scale=1e-3)
    arguments["x"][0, 0, 0, 0] = 1000.0
    assert_as_good_as_torch(arguments)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reference_is_the_formula(options: dict[str, Any]) -> None:
    own = {name: torch.float32 if value == "own" else value for name, value in options.items()}
    arguments = doubled(case((2, 10, 5, 7), **own))
    u = exact_input(arguments)
    groups = arguments["groups"]
    mean, rstd = (value.repeat_interleave(u.shape[1] // groups, 1) for value in exact_moments(u, groups).unbind(-1))
    y = (u - mean[..., None, None]) * rstd[..., None, None]
    y = y * arguments["weight"][:, None, None] + arguments["bias"][:, None, None]
    y = y / (1 + torch.exp(-y)) if arguments.get("silu", True) else y
    result = group_norm_silu_reference(**arguments)
    # Sums come in fp32.
    tolerance = 1e-5 if "sums" in arguments else 1e-12
    if isinstance(result, tuple):
        assert torch.equal(result[1], u)
        result = result[0]
    torch.testing.assert_close(result, y, rtol=tolerance, atol=tolerance)


def test_reference_is_torchs_own_group_norm() -> None:
    arguments = case((2, 12, 5, 7), groups=3)
    x, weight, bias = (arguments[name] for name in ("x", "weight", "bias"))
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 3, weight, bias, EPS))
    result = group_norm_silu_reference(**arguments)
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, expected)


def input_of(arguments: dict[str, Any]) -> Input:
    names = ("x", "concat", "upsample", "residual", "embedding")
    return Input(*(arguments.get(name) for name in names))


def assert_moments(statistics: Any, u: Any, groups: int) -> None:
    torch.testing.assert_close(statistics.double(), exact_moments(u, groups), rtol=2e-6, atol=2e-6)


@each_layout
@pytest.mark.parametrize(("channels", "groups"), [(40, 1), (12, 3), (9, 9)])
@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 6, 34])
def test_statistics_of_any_number_of_chunks(chunks: int, channels: int, groups: int, layout: Any) -> None:
    """Of 17 x 19 pixels, 34 chunks are more than one step of the merging takes; the last 13 are empty."""
    arguments = case((1, channels, 17, 19), torch.float32, layout, groups=groups)
    u = input_of(arguments)
    assert_moments(compute_statistics(u, groups, EPS, chunks=chunks), arguments["x"], groups)


@pytest.mark.parametrize(("width", "groups"), [(10, 20), (60, 9)])
def test_statistics_of_groups_across_blocks(width: int, groups: int) -> None:
    """Widths as in Stable Diffusion's U-Nets; two sets, the last of them shorter; each group about its own mean."""
    arguments = case((1, width * groups, 5, 9), torch.float32, torch.channels_last, groups=groups)
    split = group_norm_tiles.split_channels(width * groups, groups)
    assert split.sets == 2
    assert split.slices < split.blocks < 2 * split.slices
    arguments["x"] += torch.arange(groups, device=DEVICE).repeat_interleave(width)[:, None, None] * 30.0
    assert_moments(compute_statistics(input_of(arguments), groups, EPS, chunks=2), arguments["x"], groups)


def test_statistics_of_more_chunks_than_pixels() -> None:
    arguments = case((2, 6, 2, 2), groups=2)
    assert_moments(compute_statistics(input_of(arguments), 2, EPS, chunks=9), arguments["x"], 2)


UPSAMPLED: dict[str, dict[str, Any]] = {
    "alone": {},
    "embedding": {"embedding": torch.float32},
    "residual": {"residual": True},
    "concat": {"concat": 4},
    "concat, residual": {"concat": 4, "residual": True},
}


@each_layout
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("options", UPSAMPLED.values(), ids=UPSAMPLED)
def test_statistics_of_an_upsampled_image(options: dict[str, Any], chunks: int, layout: Any) -> None:
    arguments = case((1, 6, 5, 9), torch.float32, layout, upsample=True, **options)
    u = input_of(arguments)
    assert u.repeats == (not options.keys() & {"concat", "residual"})
    assert_moments(compute_statistics(u, 2, EPS, chunks=chunks), exact_input(arguments), 2)


@each_layout
def test_statistics_of_an_upsampled_image_have_every_pixel_of_the_skip(layout: Any) -> None:
    """Each pixel in its turn outweighs the others, so one that is not read, or read twice, shows."""
    arguments = case((1, 2, 3, 1), torch.float32, layout, upsample=True, concat=2)
    for pixel in range(12):
        arguments["concat"][0, 1, pixel // 2, pixel % 2] += 1000.0
        assert_moments(compute_statistics(input_of(arguments), 2, EPS), exact_input(arguments), 2)
        arguments["concat"][0, 1, pixel // 2, pixel % 2] -= 1000.0


def workspace_of(u: Input, groups: int, chunks: int) -> Workspace:
    return new_workspace(u.x, group_norm_tiles.split_channels(u.out_shape[1], groups), chunks, groups)


def test_statistics_on_one_workspace_again_and_again() -> None:
    u = [input_of(case((2, 68, 12, 11), groups=4, mean=mean)) for mean in (0.0, 7.0)]
    workspace = workspace_of(u[0], 4, 3)
    found = []
    for turn in range(4):
        statistics = compute_statistics(u[turn % 2], 4, EPS, chunks=3, workspace=workspace)
        assert statistics is workspace.statistics
        assert_moments(statistics, u[turn % 2].x, 4)
        assert not workspace.tickets.any()
        found.append(statistics.clone())
        workspace.statistics.fill_(float("nan"))
        workspace.partials.fill_(float("nan"))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_statistics_wait_for_the_last_ticket() -> None:
    """One ticket short, no program is the last: what is compared above is written by the last and by nobody else."""
    u = input_of(case((1, 8, 12, 11)))
    workspace = workspace_of(u, 2, 3)
    workspace.tickets.fill_(-1)
    assert compute_statistics(u, 2, EPS, chunks=3, workspace=workspace).isnan().all()
    assert workspace.tickets.tolist() == [2]


@pytest.mark.parametrize("wrong", [0, 1], ids=["mean", "rstd"])
def test_group_norm_silu_shows_wrong_statistics(wrong: int) -> None:
    arguments = case((2, 8, 5, 7))
    u = input_of(arguments)
    flags: dict[str, Any] = {"groups": 2, "eps": EPS, "silu": True, "from_sums": False, "return_input": False}
    statistics = compute_statistics(u, 2, EPS)
    vectors = (arguments["weight"], arguments["bias"])
    error, budget = errors(apply(u, statistics, *vectors, **flags)[0], arguments)
    assert error <= budget
    statistics[1, 1, wrong] *= 1.0001
    error, budget = errors(apply(u, statistics, *vectors, **flags)[0], arguments)
    assert error > budget


@pytest.mark.parametrize("name", ["weight", "bias", "concat", "residual", "embedding", "sums"])
def test_group_norm_silu_shows_a_wrong_argument(name: str) -> None:
    options: dict[str, Any] = {"concat": 2, "residual": True, "embedding": torch.float32, "sums": name == "sums"}
    arguments = case((2, 8, 5, 7), **options)
    changed = {**arguments, name: arguments[name].clone()}
    changed[name].view(-1)[-1] *= 1.05
    error, budget = errors(group_norm_silu(**changed), arguments)
    assert error > budget


def animediffusions(x: Any, skip: Any, weight: Any, bias: Any, groups: int) -> tuple[Any, Any]:
    """The decoder where a level begins, as the network has it: its block's normalised input, and that input itself."""
    u = torch.cat([torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1)
    return torch.nn.functional.silu(torch.nn.functional.group_norm(u, groups, weight, bias, EPS)), u


@each_layout
@each_dtype
@pytest.mark.parametrize(
    ("shape", "skip", "groups"), [((1, 8, 7, 5), 4, 2), ((2, 5, 3, 9), 7, 3), ((1, 16, 9, 3), 8, 8)], ids=str
)
def test_group_norm_silu_is_animediffusions_decoder(
    shape: tuple[int, int, int, int], skip: int, groups: int, dtype: Any, layout: Any
) -> None:
    arguments = case(shape, dtype, layout, groups=groups, concat=skip, upsample=True, vectors=dtype, return_input=True)
    tensors = [arguments[name] for name in ("x", "concat", "weight", "bias")]
    assert plan_chunks(input_of(arguments), group_norm_tiles.split_channels(shape[1] + skip, groups)) > 1
    truth, exact_u = animediffusions(*(tensor.double() for tensor in tensors), groups)
    plain, _ = animediffusions(*tensors, groups)
    out, u = group_norm_silu(**arguments)
    assert torch.equal(u.double(), exact_u)
    assert out.is_contiguous(memory_format=layout)
    assert u.is_contiguous(memory_format=layout)
    budget = 2 * (plain - truth).abs().max().item() + FLOOR * max(1.0, truth.abs().max().item())
    assert (out - truth).abs().max().item() <= budget
    # Two neighbours exchanged in the skip, which an upsampling of both would not tell apart.
    arguments["concat"][..., :2] = arguments["concat"][..., :2].flip(-1)
    assert (group_norm_silu(**arguments)[0] - truth).abs().max().item() > 10 * budget


def test_group_norm_silu_is_what_the_network_of_animediffusion_does() -> None:
    torch.manual_seed(0)
    network = UNet(AnimeDiffusionConfig(7, 3, 32, 1, (1, 2), 4, False, 10)).to(DEVICE)
    *_, upsampling, block = network.decoder_block
    seen: dict[str, Any] = {}
    upsampling[1].register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    block.register_forward_pre_hook(lambda module, inputs: seen.update(u=inputs[0]))
    block.conv1[1].register_forward_hook(lambda module, inputs, out: seen.update(out=out))
    norm = block.conv1[0]
    with torch.inference_mode():
        norm.weight.normal_()
        norm.bias.normal_()
        network(draw((1, 7, 6, 10), torch.float32), torch.tensor([3], device=DEVICE))
        x = seen["x"]
        assert (x.shape, seen["u"].shape) == ((1, 64, 3, 5), (1, 96, 6, 10))
        out, u = group_norm_silu(
            x,
            norm.weight,
            norm.bias,
            groups=norm.num_groups,
            eps=norm.eps,
            concat=seen["u"][:, x.shape[1] :].contiguous(),
            upsample=True,
            return_input=True,
        )
    assert torch.equal(u, seen["u"])
    torch.testing.assert_close(out, seen["out"], rtol=1e-5, atol=2e-6)


def test_group_norm_silu_of_sums_that_give_a_negative_variance() -> None:
    arguments = case((1, 4, 4, 4))
    arguments["x"].fill_(3.0)
    arguments["sums"] = torch.tensor([48.0, 143.9], device=DEVICE).expand(1, 4, 2).contiguous()
    out = group_norm_silu(**arguments)
    expected = torch.nn.functional.silu(arguments["bias"])[None, :, None, None].expand(1, 4, 4, 4)
    torch.testing.assert_close(out, expected, rtol=4e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@each_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_group_norm_silu_keeps_nan_in_its_group(value: float, layout: Any) -> None:
    arguments = case((2, 70, 9, 8), torch.float32, layout, groups=35)
    arguments["x"][1, 5, 8, 7] = value
    bad = group_norm_silu(**arguments).isnan()
    assert bad[1, 4:6].all()
    assert bad.sum() == 2 * 72


def test_group_norm_silu_leaves_its_inputs_alone() -> None:
    arguments = case((1, 4, 3, 3), concat=2, upsample=True, residual=True, embedding=torch.float32, return_input=True)
    tensors = [value for value in arguments.values() if torch.is_tensor(value)]
    copies = [tensor.clone() for tensor in tensors]
    group_norm_silu(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_group_norm_silu_of_nothing(shape: tuple[int, int, int, int]) -> None:
    out, u = group_norm_silu(**case(shape, upsample=True, return_input=True))
    assert out.shape == u.shape == (shape[0], 4, 2 * shape[2], 6)


def test_group_norm_silu_takes_the_layout_of_what_has_one() -> None:
    """An image of one channel is dense in both layouts; what it is joined to decides."""
    arguments = case((2, 1, 5, 7), torch.float32, torch.channels_last, concat=3)
    arguments["x"] = arguments["x"].contiguous()
    assert arguments["x"].is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch(arguments)
    assert group_norm_silu(**arguments).is_contiguous(memory_format=torch.channels_last)


def test_group_norm_silu_is_a_node_of_a_compiled_graph() -> None:
    arguments = case((1, 4, 5, 6), torch.float32, torch.channels_last, concat=2, return_input=True, upsample=True)

    def network(x: Any, concat: Any) -> Any:
        out, u = group_norm_silu(**{**arguments, "x": x * 2, "concat": concat})
        return out + u

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    expected = network(arguments["x"], arguments["concat"])
    assert torch.equal(compiled(arguments["x"], arguments["concat"]), expected)


class Network(torch.nn.Module):
    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = {name: value for name, value in arguments.items() if not torch.is_tensor(value)}
        self.weight = torch.nn.Parameter(arguments["weight"])
        self.bias = torch.nn.Parameter(arguments["bias"])

    def forward(self, x: Any, embedding: Any) -> Any:
        return group_norm_silu(x, self.weight, self.bias, embedding=embedding, **self.arguments)


def test_group_norm_silu_is_exported() -> None:
    arguments = case((2, 4, 5, 6), embedding=torch.float32)
    network = Network(arguments)
    inputs = (arguments["x"], arguments["embedding"])
    exported = torch.export.export(network, inputs)
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == [
        "saishiki.group_norm_silu.default",
        "<built-in function getitem>",
    ]
    with torch.inference_mode():
        assert torch.equal(exported.module()(*inputs), network(*inputs))


@each_layout
def test_group_norm_silu_is_exported_with_dynamic_sizes(layout: Any) -> None:
    arguments = case((2, 4, 5, 6), torch.float32, layout, embedding=torch.float32)
    network = Network(arguments)
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim("height", min=2, max=64)
    shapes = ({0: batch, 2: height}, {0: batch})
    exported = torch.export.export(network, (arguments["x"], arguments["embedding"]), dynamic_shapes=shapes)
    x, embedding = image((3, 4, 9, 6), torch.float32, layout, seed=7), draw((3, 4), torch.float32, seed=8)
    with torch.inference_mode():
        assert torch.equal(exported.module()(x, embedding), network(x, embedding))


@pytest.mark.parametrize("return_input", [False, True], ids=["alone", "with input"])
def test_group_norm_silu_is_registered_as_torch_wants(return_input: bool) -> None:
    arguments = case((1, 4, 3, 5), torch.float32, torch.channels_last, embedding=torch.float32, upsample=True)
    given = (arguments["x"], arguments["weight"], arguments["bias"], 2, EPS, True, None, True, None)
    op = torch.ops.saishiki.group_norm_silu.default
    torch.library.opcheck(op, (*given, arguments["embedding"], None, return_input))


@pytest.mark.parametrize("return_input", [False, True], ids=["alone", "with input"])
def test_group_norm_silu_has_no_gradient(return_input: bool) -> None:
    arguments = case((1, 4, 3, 3), return_input=return_input)
    arguments["weight"].requires_grad_()
    out = group_norm_silu(**arguments)
    with pytest.raises(NotImplementedError, match=r"group_norm_silu.* has no gradient: it is made for inference"):
        (out[0] if return_input else out).sum().backward()


def bad_arguments() -> list[Any]:
    x = torch.zeros(2, 4, 6, 8, device=DEVICE)
    vector, both = torch.ones(4, device=DEVICE), torch.ones(8, device=DEVICE)
    good = {"x": x, "weight": vector, "bias": vector, "groups": 2, "eps": EPS}
    nhwc = x.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    with_concat = {"concat": x, "weight": both, "bias": both}
    cases: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "x of three dimensions": ({"x": x[0]}, ValueError, "expected x (B, C, H, W), got (4, 6, 8)"),
        "x in fp64": ({"x": x.double()}, TypeError, "expected x in torch.float16 or"),
        "x turned": ({"x": turned}, ValueError, "x is neither contiguous nor channels_last; call .contiguous()"),
        "concat of three dimensions": ({"concat": x[0]}, ValueError, "expected concat (B, C, H, W), got (4, 6, 8)"),
        "concat in fp16": ({"concat": x.half()}, TypeError, "expected concat in torch.float32, got torch.float16"),
        "concat of another batch": ({"concat": x[:1]}, ValueError, "expected concat of shape (2, 4, 6, 8)"),
        "concat of another size": ({"concat": x[:, :, :3]}, ValueError, "expected concat of shape (2, 4, 6, 8)"),
        "concat of the small image": (
            {"concat": x, "upsample": True},
            ValueError,
            "expected concat of shape (2, 4, 12, 16), got (2, 4, 6, 8)",
        ),
        "concat elsewhere": ({"concat": x.to("meta")}, ValueError, f"expected concat on {x.device}, got meta; move it"),
        "concat turned": ({"concat": turned}, ValueError, "concat is neither contiguous nor channels_last"),
        "concat in another layout": ({**with_concat, "concat": nhwc}, ValueError, "x, concat and residual differ in"),
        "residual in fp16": ({"residual": x.half()}, TypeError, "expected residual in torch.float32"),
        "residual of the small image": (
            {"residual": x, "upsample": True},
            ValueError,
            "expected residual of shape (2, 4, 12, 16), got (2, 4, 6, 8)",
        ),
        "residual of x without concat": ({**with_concat, "residual": x}, ValueError, "residual of shape (2, 8, 6, 8)"),
        "residual in another layout": ({"residual": nhwc}, ValueError, "x, concat and residual differ in layout"),
        "groups that do not divide": ({"groups": 3}, ValueError, "expected groups that divide the 4 channels, got 3"),
        "no groups": ({"groups": 0}, ValueError, "expected groups that divide the 4 channels, got 0"),
        "no channels": ({"x": x[:, :0]}, ValueError, "expected groups that divide the 0 channels, got 2"),
        "eps 0": ({"eps": 0.0}, ValueError, "expected a finite eps above 0, got 0.0"),
        "eps nan": ({"eps": float("nan")}, ValueError, "expected a finite eps above 0, got nan"),
        "eps inf": ({"eps": float("inf")}, ValueError, "expected a finite eps above 0, got inf"),
        "weight in fp16": ({"weight": vector.half()}, TypeError, "expected weight in torch.float32, got torch.float16"),
        "weight too short": ({"weight": vector[:3]}, ValueError, "expected weight of shape (4,), got (3,)"),
        "weight of x without concat": ({"concat": x}, ValueError, "expected weight of shape (8,), got (4,)"),
        "weight with gaps": ({"weight": both[::2]}, ValueError, "weight is not contiguous; call .contiguous()"),
        "weight elsewhere": (
            {"weight": vector.to("meta")},
            ValueError,
            f"expected weight on {x.device}, got meta; move it",
        ),
        "bias in bf16": ({"bias": vector.bfloat16()}, TypeError, "expected bias in torch.float32, got torch.bfloat16"),
        "bias too short": ({"bias": vector[:3]}, ValueError, "expected bias of shape (4,), got (3,)"),
        "embedding of one image": ({"embedding": vector[None]}, ValueError, "expected embedding of shape (2, 4)"),
        "embedding in fp16": ({"embedding": x[:, :, 0, 0].half()}, TypeError, "expected embedding in torch.float32"),
        "embedding with gaps": ({"embedding": x[:, :, 0, 0]}, ValueError, "embedding is not contiguous"),
        "sums in fp64": ({"sums": x[:, :, 0, :2].double()}, TypeError, "expected sums in torch.float32, got"),
        "sums of groups": (
            {"sums": both.view(2, 2, 2)},
            ValueError,
            "expected sums of shape (2, 4, 2), got (2, 2, 2)",
        ),
    }
    return [pytest.param({**good, **wrong}, error, message, id=name) for name, (wrong, error, message) in cases.items()]


@pytest.mark.parametrize(("arguments", "error", "message"), bad_arguments())
def test_group_norm_silu_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        group_norm_silu(**arguments)
    assert message in str(caught.value)


def test_group_norm_silu_refuses_more_pixels_than_it_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # Looked up as a module: in the package above, this name is the function's.
    monkeypatch.setattr(importlib.import_module("saishiki.kernels.group_norm_silu.op"), "MAX_PIXELS", 40)
    assert group_norm_silu(**case((1, 4, 5, 8))).shape == (1, 4, 5, 8)
    with pytest.raises(ValueError, match="expected an output of at most 40 pixels an image, got 48"):
        group_norm_silu(**case((1, 4, 3, 4), upsample=True))


def test_group_norm_silu_refuses_the_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saishiki.kernels.checks.INTERPRETED", False)
    arguments = {name: value.cpu() if torch.is_tensor(value) else value for name, value in case((1, 4, 3, 3)).items()}
    with pytest.raises(
        ValueError, match=r"expected tensors on a CUDA device, got one on cpu; .* group_norm_silu_refer"
    ):
        group_norm_silu(**arguments)


def test_the_op_refuses_layouts_that_a_compiler_has_changed() -> None:
    x = image((1, 4, 3, 5), torch.float32, torch.contiguous_format)
    vector, turned = torch.ones(4, device=DEVICE), x.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="x, concat and residual differ in layout"):
        torch.ops.saishiki.group_norm_silu(turned, vector, vector, 2, EPS, True, None, False, None, None, None, False)


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 32, 33, 64])
@pytest.mark.parametrize("width", [1, 2, 3, 6, 7, 10, 17, 24, 31, 32, 33, 60, 80])
def test_split_channels_gives_every_group_to_one_set(width: int, groups: int) -> None:
    channels, block = width * groups, group_norm_tiles.STATISTICS_CHANNELS
    split = group_norm_tiles.split_channels(channels, groups)
    assert (split.blocks - 1) * block < channels <= split.blocks * block
    assert (split.sets - 1) * split.slices < split.blocks <= split.sets * split.slices
    if split.sets > 1:
        assert split.slices * block % width == 0
    # The last program of a set has a column for each group of it.
    assert -(-min(split.slices * block, channels) // width) <= block


# Channels of u and side of the image at 256 px.
ANIMEDIFFUSION = [
    *[(64, 256), (128, 256), (192, 256), (64, 128), (128, 128), (192, 128), (256, 128), (384, 128)],
    *[(128, 64), (256, 64), (384, 64), (512, 64), (768, 64), (256, 32), (512, 32), (768, 32), (1024, 32)],
]


@pytest.mark.parametrize(("channels", "side"), ANIMEDIFFUSION, ids=str)
def test_every_multiprocessor_has_a_program_at_batch_1(channels: int, side: int) -> None:
    split = group_norm_tiles.split_channels(channels, 32)
    chunks = group_norm_tiles.count_chunks(side * side, blocks=split.blocks, sms=132)
    assert split.blocks * chunks >= 132
    for block_p, block_c in group_norm_tiles.APPLY_TILES.values():
        blocks = -(-channels // block_c)
        pixel_blocks = group_norm_tiles.count_pixel_blocks(side * side, block_pixels=block_p, blocks=blocks, sms=132)
        assert blocks * pixel_blocks >= 132


@pytest.mark.parametrize("pixels", [1, 16, 17, 64, 65, 1000, 65536])
@pytest.mark.parametrize("blocks", [1, 2, 7, 4096])
def test_pixels_are_cut_without_an_empty_part(pixels: int, blocks: int) -> None:
    chunks = group_norm_tiles.count_chunks(pixels, blocks=blocks, sms=132)
    pixel_blocks = group_norm_tiles.count_pixel_blocks(pixels, block_pixels=32, blocks=blocks, sms=132)
    for parts in (chunks, pixel_blocks):
        per_part = -(-pixels // (parts * group_norm_tiles.PIXEL_UNIT)) * group_norm_tiles.PIXEL_UNIT
        assert (parts - 1) * per_part < pixels <= parts * per_part
    assert -(-pixels // pixel_blocks) <= 32


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variants_name_every_argument(variant: Any) -> None:
    names = list(variant.kernel.arg_names)
    assert [*variant.signature, *variant.constexprs] == names
    assert set(variant.aligned) <= set(variant.signature)
    for factors, divisor in variant.grid:
        assert all(variant.signature[factor] == "i32" for factor in factors)
        assert divisor >= 1
    assert variant.name.startswith("group_norm_silu_")
    assert variant.name.endswith("_fp16")


def test_variants_are_distinct() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) <= 15
    constants = {(id(variant.kernel), tuple(variant.constexprs.items())) for variant in VARIANTS}
    assert len(constants) == len(VARIANTS)


REAL_SIZES = [(1, 64, 256, 256), (1, 512, 32, 32), (64, 128, 128, 128)]


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@each_layout
@each_dtype
@pytest.mark.parametrize("shape", REAL_SIZES, ids=str)
def test_group_norm_silu_on_the_gpu(shape: tuple[int, int, int, int], dtype: Any, layout: Any) -> None:
    assert DEVICE == "cuda"
    assert_as_good_as_torch(case(shape, dtype, layout, groups=32))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@each_layout
@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_group_norm_silu_with_options_on_the_gpu(options: dict[str, Any], dtype: Any, layout: Any) -> None:
    own = {name: dtype if value == "own" else value for name, value in options.items()}
    own["concat"] = 32 * own.get("concat", 0)
    assert_as_good_as_torch(case((2, 320, 61, 67), dtype, layout, groups=32, **own))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize(("dtype", "mean", "scale"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_group_norm_silu_of_a_large_mean_on_the_gpu(dtype: Any, mean: float, scale: float) -> None:
    assert_as_good_as_torch(case((1, 64, 255, 253), dtype, torch.channels_last, groups=32, mean=mean, scale=scale))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("shape", REAL_SIZES, ids=str)
def test_statistics_are_the_same_200_times(shape: tuple[int, int, int, int]) -> None:
    """Programs finish in another order each time; whoever is last must find all partials, and clear its ticket."""
    u = input_of(case(shape, torch.float16, torch.channels_last, groups=32))
    chunks = group_norm_tiles.count_chunks(
        shape[2] * shape[3], blocks=group_norm_tiles.split_channels(shape[1], 32).blocks, sms=1056
    )
    workspace = workspace_of(u, 32, chunks)
    first = compute_statistics(u, 32, EPS, chunks=chunks, workspace=workspace).clone()
    assert_moments(first, u.x, 32)
    for _ in range(200):
        workspace.partials.fill_(float("nan"))
        workspace.statistics.fill_(float("nan"))
        assert torch.equal(compute_statistics(u, 32, EPS, chunks=chunks, workspace=workspace), first)
        assert not workspace.tickets.any()


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_group_norm_silu_in_a_cuda_graph() -> None:
    arguments = case((1, 64, 256, 256), torch.float16, torch.channels_last, groups=32)
    expected = group_norm_silu(**arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = group_norm_silu(**arguments)
    for _ in range(20):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)
