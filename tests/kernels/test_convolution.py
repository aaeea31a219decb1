"""The convolutions against their reference in fp64, on the GPU or under Triton's interpreter."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.convolution import (  # noqa: E402
    InputNorm,
    convolution,
    convolution_from_images,
    convolution_from_images_reference,
    convolution_reference,
    convolution_to_image,
    convolution_to_image_reference,
)
from saishiki.kernels.convolution.launch import run_convolution, run_from_images, run_to_image  # noqa: E402
from saishiki.kernels.group_norm_silu.launch import Input, apply, compute_statistics  # noqa: E402
from saishiki.runtime.backends.convolution_tiles import ConvolutionShape, Tile  # noqa: E402
from tests.kernels.drawing import DEVICE, DTYPES, assert_within_budget, draw  # noqa: E402

EPS = 1e-5
GROUPS = 4
SMALL = Tile(16, 16, 16, warps=4, stages=2)
"""So small that tiny cases have several blocks and steps, and ends that fill none of them."""

# The interpreter's numpy says so where SiLU takes exp(-y) of a very negative y; the result is 0, as it should be.
pytestmark = [
    pytest.mark.usefixtures("nan_in_new_memory"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def image(*shape: int, seed: int, dtype: Any, mean: float = 0.0) -> Any:
    return draw(*shape, seed=seed, mean=mean, dtype=dtype).contiguous(memory_format=torch.channels_last)


def norm_of(x: Any, *, silu: bool) -> InputNorm:
    numbers = x.double().reshape(x.shape[0], GROUPS, -1)
    moments = [numbers.mean(-1), (numbers.var(-1, correction=0) + EPS) ** -0.5]
    channels = x.shape[1]
    weight, bias = draw(channels, seed=7, mean=1.0), draw(channels, seed=8)
    return InputNorm(torch.stack(moments, -1).float().contiguous(), weight, bias, silu)


def case(
    sizes: tuple[int, int, int, int] = (2, 24, 5, 7),
    filters: int = 20,
    taps: tuple[int, int] = (3, 3),
    dtype: Any = torch.float16,
    *,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    residual: bool = False,
    bias_per_image: bool = False,
    norm: bool | None = None,
    mean: float = 0.0,
) -> dict[str, Any]:
    """Arguments of the op. norm: whether SiLU follows it; None for no norm."""
    shape = ConvolutionShape(*(sizes[i] for i in (0, 2, 3, 1)), filters, taps, stride, padding)
    x = image(*sizes, seed=0, dtype=dtype, mean=mean)
    arguments: dict[str, Any] = {
        "x": x,
        "weight": image(filters, sizes[1], *taps, seed=1, dtype=torch.float32),
        "bias": draw(*((sizes[0], filters) if bias_per_image else (filters,)), seed=2, dtype=dtype),
        "stride": stride,
        "padding": padding,
    }
    arguments["weight"] = (arguments["weight"] / (sizes[1] * taps[0] * taps[1]) ** 0.5).to(dtype)
    if residual:
        arguments["residual"] = image(sizes[0], filters, shape.out_height, shape.out_width, seed=3, dtype=dtype)
    if norm is not None:
        arguments["norm"] = norm_of(x, silu=norm)
    return arguments


def shape_of(arguments: dict[str, Any]) -> ConvolutionShape:
    batch, channels, height, width = arguments["x"].shape
    filters, _, *taps = arguments["weight"].shape
    return ConvolutionShape(
        batch, height, width, channels, filters, (taps[0], taps[1]), arguments["stride"], arguments["padding"]
    )


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if torch.is_tensor(value) else value for name, value in arguments.items()}


def assert_as_good_as_torch(arguments: dict[str, Any], tile: Tile | None = None, **wrong: Any) -> None:
    """The error against fp64 is at most twice that of plain torch at that dtype, plus a floor for numbers near 0.

    Args:
        tile: of the launch, in place of the op's own.
        wrong: what the op is told instead; makes this fail.
    """
    truth, plain = convolution_reference(**doubled(arguments)), convolution_reference(**arguments)
    told = {**arguments, **wrong}
    if tile is None:
        out = convolution(**told)
    else:
        tensors = {name: value for name, value in told.items() if name not in ("stride", "padding")}
        out = run_convolution(shape_of(told), **tensors, tile=tile)
    assert out.dtype == arguments["x"].dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_within_budget(out, plain, truth)


KINDS: dict[str, dict[str, Any]] = {
    "1x1": {"taps": (1, 1), "padding": (0, 0, 0, 0)},
    "3x3": {},
    "stride 2": {"stride": 2},
    "down as a VAE": {"stride": 2, "padding": (0, 0, 1, 1)},
    "padding all different": {"padding": (0, 2, 1, 3)},
    "no padding": {"padding": (0, 0, 0, 0)},
    "1x3": {"taps": (1, 3), "padding": (0, 1, 0, 1)},
    "2x1, stride 3": {"taps": (2, 1), "stride": 3, "padding": (2, 0, 1, 0)},
    "residual": {"residual": True},
    "bias per image": {"bias_per_image": True},
    "1x1, all": {"taps": (1, 1), "padding": (0, 0, 0, 0), "residual": True, "bias_per_image": True, "norm": True},
    "norm": {"norm": False},
    "norm, SiLU": {"norm": True},
    "stride 2, all": {"stride": 2, "residual": True, "bias_per_image": True, "norm": True},
    "large mean": {"norm": True, "mean": 4.0},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@each_kind
def test_convolution_is_as_good_as_torch(kind: dict[str, Any]) -> None:
    assert_as_good_as_torch(case(**kind))


@pytest.mark.parametrize("kind", ["down as a VAE", "stride 2, all"])
@each_dtype
def test_convolution_of_dtypes(dtype: Any, kind: str) -> None:
    assert_as_good_as_torch(case(dtype=dtype, **KINDS[kind]))


@pytest.mark.parametrize("kind", ["1x1, all", "padding all different", "stride 2, all"])
def test_convolution_in_several_blocks(kind: str) -> None:
    assert_as_good_as_torch(case((2, 24, 5, 4), **KINDS[kind]), SMALL)


SIZES = [
    ((1, 1, 1, 1), 1),
    ((1, 7, 3, 2), 5),  # no wide loads
    ((1, 12, 4, 3), 10),  # loads of four, stores of two
    ((3, 136, 2, 3), 8),  # three steps of channels
    ((1, 8, 13, 11), 136),  # two blocks of pixels, two of filters
]


@pytest.mark.parametrize(("sizes", "filters"), SIZES, ids=str)
def test_convolution_of_any_size(sizes: tuple[int, int, int, int], filters: int) -> None:
    assert_as_good_as_torch(case(sizes, filters, residual=True))


def test_convolution_of_tokens_is_a_linear_layer() -> None:
    """(B T, D) as a picture of one column."""
    x, weight, bias = draw(150, 40, seed=0, dtype=torch.float16), draw(24, 40, seed=1), draw(24, seed=2)
    weight, bias = (weight / 40**0.5).half(), bias.half()
    out = convolution(x.T[None, :, :, None], weight[:, :, None, None], bias)
    truth, plain = (torch.nn.functional.linear(*(t.to(d) for t in (x, weight, bias))) for d in (torch.double, x.dtype))
    assert_within_budget(out[0, :, :, 0].T, plain, truth)


@pytest.mark.parametrize(("silu", "dtype"), [(True, torch.float16), (False, torch.bfloat16)], ids=str)
def test_convolution_of_a_norm_is_that_of_the_norm_by_itself(dtype: Any, silu: bool) -> None:
    """Bit for bit: what comes in is rounded, and the padding is 0 behind the norm, whose bias is not."""
    arguments = case(dtype=dtype, stride=2)
    u = Input(arguments["x"], None, False, None, None)
    vectors = draw(24, seed=7, mean=1.0), draw(24, seed=8, mean=1.0)
    statistics = compute_statistics(u, GROUPS, EPS)
    how = {"groups": GROUPS, "eps": EPS, "silu": silu, "from_sums": False, "return_input": False}
    (normalised,) = apply(u, statistics, *vectors, **how)
    apart = convolution(**{**arguments, "x": normalised})
    assert torch.equal(convolution(**arguments, norm=InputNorm(statistics, *vectors, silu)), apart)


def test_reference_is_the_formula() -> None:
    arguments = doubled(case((2, 4, 3, 4), 3, (2, 3), stride=2, padding=(1, 0, 0, 2), residual=True, norm=True))
    x, weight, norm = arguments["x"], arguments["weight"], arguments["norm"]
    y = torch.zeros_like(arguments["residual"])
    for b in range(2):
        mean, rstd = norm.statistics[b].double().repeat_interleave(4 // GROUPS, 0)[:, :, None, None].unbind(1)
        u = (x[b] - mean) * rstd * norm.weight[:, None, None] + norm.bias[:, None, None]
        u = u / (1 + torch.exp(-u))
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                for r in range(2):
                    for s in range(3):
                        h, w = 2 * i + r - 1, 2 * j + s
                        if 0 <= h < 3 and w < 4:
                            y[b, :, i, j] += weight[:, :, r, s] @ u[:, h, w]
    y += arguments["residual"] + arguments["bias"][:, None, None]
    torch.testing.assert_close(convolution_reference(**arguments), y, rtol=1e-12, atol=1e-12)


def test_convolution_takes_rows_of_bias_again_for_further_images() -> None:
    """As the slots of guidance do, of so many images each."""
    arguments = case((4, 8, 3, 2), bias_per_image=True)
    given = {**arguments, "bias": arguments["bias"][:2].contiguous()}
    assert_as_good_as_torch(given)
    repeated = {**arguments, "bias": arguments["bias"][:2].repeat(2, 1)}
    assert torch.equal(convolution(**given), convolution(**repeated))
    assert torch.equal(convolution_reference(**given), convolution_reference(**repeated))


def test_reference_of_one_bias_per_image() -> None:
    arguments = doubled(case(bias_per_image=True))
    alone = [
        convolution_reference(**{**arguments, "x": arguments["x"][b : b + 1], "bias": arguments["bias"][b]})
        for b in range(2)
    ]
    torch.testing.assert_close(convolution_reference(**arguments), torch.cat(alone), rtol=1e-12, atol=1e-12)


# Told to the op in place of what the reference is told; the result has the same shape.
WRONG_ARGUMENTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "stride": lambda a: {"stride": 2, "padding": (1, 1, 6, 8)},
    "padding": lambda a: {"padding": (1, 2, 1, 0)},
    "no residual": lambda a: {"residual": None},
    "bias of the other image": lambda a: {"bias": a["bias"].flip(0)},
    "taps turned": lambda a: {"weight": a["weight"].transpose(2, 3).contiguous(memory_format=torch.channels_last)},
    "no norm": lambda a: {"norm": None},
    "one channel": lambda a: {"x": a["x"] + 0.1 * (torch.arange(24) == 23).to(a["x"])[:, None, None]},
}


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
def test_convolution_shows_a_wrong(wrong: str) -> None:
    arguments = case(residual=True, bias_per_image=True, norm=True)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(arguments, **WRONG_ARGUMENTS[wrong](arguments))


@pytest.mark.parametrize("number", ["stride", "pad_top", "pad_left", "width", "out_width", "taps_s", "channel_units"])
def test_a_launch_shows_a_wrong(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch: Any = importlib.import_module("saishiki.kernels.convolution.launch")
    right = launch.sizes
    arguments = case((2, 24, 6, 6), stride=2, padding=(1, 1, 0, 0))
    assert_as_good_as_torch(arguments)
    monkeypatch.setattr(launch, "sizes", lambda *a, **kw: {**right(*a, **kw), number: right(*a, **kw)[number] - 1})
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(arguments)


def test_convolution_reads_nothing_of_other_images() -> None:
    arguments = case((3, 24, 5, 7), residual=True, bias_per_image=True, norm=True)
    expected = convolution(**arguments)
    for name in ("x", "residual", "bias"):
        arguments[name][0] = arguments[name][2] = float("nan")
    out = convolution(**arguments)
    assert torch.equal(out[1], expected[1])
    assert out[0].isnan().all()
    assert out[2].isnan().all()


def test_convolution_gives_nan_where_a_nan_is_seen() -> None:
    arguments = case((1, 24, 5, 7))
    arguments["x"][0, 3, 2, 0] = float("nan")
    seen = convolution(**arguments).isnan().all(1)[0].nonzero().tolist()
    assert seen == [[i, j] for i in (1, 2, 3) for j in (0, 1)]


def test_convolution_leaves_its_inputs_alone() -> None:
    arguments = case(residual=True)
    copies = {name: value.clone() for name, value in arguments.items() if torch.is_tensor(value)}
    convolution(**arguments)
    assert all(torch.equal(arguments[name], copy) for name, copy in copies.items())


def images_case(dtype: Any = torch.float16, *, second: int = 4, size: int = 9, filters: int = 20) -> dict[str, Any]:
    """Arguments of ``convolution_from_images``, of numbers that fp16 does not have; with a residual."""
    channels = 3 + second
    weight = image(filters, channels, 3, 3, seed=2, dtype=torch.float32) / (9 * channels) ** 0.5
    return {
        "x": draw(2, 3, size, 5, seed=0),
        "x2": draw(2, second, size, 5, seed=1) if second else None,
        "weight": weight.to(dtype),
        "bias": draw(filters, seed=3, dtype=dtype),
        "padding": (1, 1, 1, 1),
        "residual": image(2, filters, size, 5, seed=4, dtype=dtype),
    }


def assert_images_are_as_good_as_torch(arguments: dict[str, Any], tile: Tile | None = None, **wrong: Any) -> None:
    exact = {**arguments, **{name: arguments[name].double() for name in ("weight", "bias")}}
    exact["residual"] = None if arguments["residual"] is None else arguments["residual"].double()
    # What is rounded is part of the op: the truth begins with the same numbers.
    for name in ("x", "x2"):
        exact[name] = None if exact[name] is None else exact[name].to(arguments["weight"].dtype)
    told = {**arguments, **wrong}
    if tile is None:
        out = convolution_from_images(**told)
    else:
        joined = torch.cat([x for x in (told["x"], told["x2"]) if x is not None], 1)
        shape = shape_of({**told, "stride": told.get("stride", 1), "x": joined})
        operands = (told[name] for name in ("x", "x2", "weight", "bias"))
        out = run_from_images(shape, *operands, residual=told["residual"], tile=tile)
    assert out.dtype == arguments["weight"].dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_within_budget(
        out, convolution_from_images_reference(**arguments), convolution_from_images_reference(**exact)
    )


@pytest.mark.parametrize(("second", "dtype"), [(0, torch.float16), (4, torch.bfloat16), (13, torch.float16)], ids=str)
def test_convolution_from_images_is_as_good_as_torch(dtype: Any, second: int) -> None:
    assert_images_are_as_good_as_torch(images_case(dtype, second=second))


def test_convolution_from_images_in_several_blocks() -> None:
    strided = {"stride": 2, "padding": (0, 0, 1, 1), "residual": image(2, 20, 4, 2, seed=4, dtype=torch.float16)}
    assert_images_are_as_good_as_torch({**images_case(), **strided}, SMALL)


def test_convolution_from_images_without_a_residual() -> None:
    assert_images_are_as_good_as_torch({**images_case(), "residual": None})


def test_convolution_from_images_takes_weights_with_more_channels() -> None:
    """As cubins do, whose weights have 8 or 16."""
    arguments = images_case()
    padded = torch.nn.functional.pad(arguments["weight"], (0, 0, 0, 0, 0, 1))
    padded = padded.contiguous(memory_format=torch.channels_last)
    shape = ConvolutionShape(2, 9, 5, 8, 20)
    operands = (arguments["x"], arguments["x2"], padded, arguments["bias"])
    out = run_from_images(shape, *operands, residual=arguments["residual"])
    assert torch.equal(out, convolution_from_images(**arguments))


@pytest.mark.parametrize("wrong", ["x2 before x", "padding", "one number", "no residual"])
def test_convolution_from_images_shows_a_wrong(wrong: str) -> None:
    arguments = images_case(second=3)
    nearly = arguments["x2"].clone()
    nearly[1, 2, 3, 4] += 0.1
    told = {
        "x2 before x": {"x": arguments["x2"], "x2": arguments["x"]},
        "padding": {"padding": (0, 1, 2, 1)},
        "one number": {"x2": nearly},
        "no residual": {"residual": None},
    }
    with pytest.raises(AssertionError):
        assert_images_are_as_good_as_torch(arguments, **told[wrong])


@pytest.mark.parametrize(("filters", "dtype"), [(1, torch.float16), (3, torch.bfloat16), (17, torch.float16)], ids=str)
def test_convolution_to_image_is_as_good_as_torch(filters: int, dtype: Any) -> None:
    arguments = case(filters=filters, dtype=dtype)
    truth, plain = (convolution_to_image_reference(**each) for each in (doubled(arguments), arguments))
    out = convolution_to_image(**arguments)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert torch.equal(out, out.to(dtype).float())
    assert_within_budget(out, plain, truth)
    with pytest.raises(AssertionError):
        assert_within_budget(convolution_to_image(**{**arguments, "padding": (2, 1, 0, 1)}), plain, truth)


def test_convolution_to_image_in_several_blocks() -> None:
    arguments = case((2, 24, 5, 4), filters=3, stride=2)
    truth, plain = (convolution_to_image_reference(**each) for each in (doubled(arguments), arguments))
    tensors = (arguments[name] for name in ("x", "weight", "bias"))
    assert_within_budget(run_to_image(shape_of(arguments), *tensors, tile=SMALL), plain, truth)


GPU_SIZES = [((1, 64, 256, 256), 64), ((1, 512, 32, 32), 512), ((2, 1280, 8, 8), 1280), ((1, 7, 61, 67), 70)]


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@each_kind
@pytest.mark.parametrize(("sizes", "filters"), GPU_SIZES, ids=str)
def test_convolution_on_the_gpu(sizes: tuple[int, int, int, int], filters: int, kind: dict[str, Any]) -> None:
    if "norm" in kind and sizes[1] % GROUPS:
        pytest.skip(f"needs channels that {GROUPS} divides")
    assert DEVICE == "cuda"
    assert_as_good_as_torch(case(sizes, filters, **kind))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_convolution_is_the_same_twice_on_the_gpu() -> None:
    arguments = case((1, 256, 64, 64), 256, residual=True, norm=True)
    first = convolution(**arguments)
    assert all(torch.equal(convolution(**arguments), first) for _ in range(20))


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
def test_convolutions_of_images_on_the_gpu() -> None:
    assert_images_are_as_good_as_torch(images_case(size=301, filters=64))
    arguments = case((1, 64, 256, 256), 3)
    truth, plain = (convolution_to_image_reference(**each) for each in (doubled(arguments), arguments))
    assert_within_budget(convolution_to_image(**arguments), plain, truth)
