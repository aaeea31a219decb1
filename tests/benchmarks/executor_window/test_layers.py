from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from battery.network import build_network
from battery.part import Options
from executor_window.layers import Conv, Layers, Norm, animediffusion_layers, by_worth, four_shapes, layers_of
from torch.utils.flop_counter import FlopCounterMode

PUBLISHED = Options(dry_run=False)
DRY_RUN = Options(dry_run=True)


def test_animediffusion_layers_of_the_published_network() -> None:
    layers = animediffusion_layers(PUBLISHED)
    kernels = [conv.kernel for conv, count in layers.convs.items() for _ in range(count)]
    assert (len(kernels), kernels.count(3), kernels.count(1)) == (59, 42, 17)
    assert sum(layers.norms.values()) == 44
    pooling, step, *attention = (
        layers.others[name] for name in ("avg_pool2d", "fused_sampler_step", *_attentions(layers))
    )
    assert (pooling, step, attention) == (3, 1, [1])
    assert sum(conv.flops * count for conv, count in layers.convs.items()) == pytest.approx(271.2e9, rel=1e-3)
    by_level = {
        height: sum(c.flops * n for c, n in layers.convs.items() if c.height == height and c.kernel == 3) / 1e9
        for height in (256, 128, 64, 32)
    }
    assert by_level == pytest.approx({256: 53.2, 128: 62.8, 64: 62.8, 32: 77.3}, rel=2e-3)


def _attentions(layers: Layers) -> list[str]:
    # Which of the two depends on the version of torch.
    return [name for name in layers.others if name in ("softmax", "scaled_dot_product")]


def test_animediffusion_layers_marks_one_residual_for_each_block() -> None:
    layers = animediffusion_layers(PUBLISHED)
    residuals = sum(count for conv, count in layers.convs.items() if conv.residual)
    assert residuals == 21  # 42 3x3 convolutions, two for each block
    assert all(conv.kernel == 3 for conv in layers.convs if conv.residual)


def test_animediffusion_layers_count_the_work_torch_counts() -> None:
    layers = animediffusion_layers(DRY_RUN)
    network = build_network(DRY_RUN, half=False, channels_last=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.predict()
    convs = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert sum(conv.flops * count for conv, count in layers.convs.items()) == convs


def test_layers_of_a_sum_of_two_convolutions_gives_the_later_one_the_residual() -> None:
    x, w = torch.empty(1, 8, 4, 4, device="meta"), torch.empty(8, 8, 3, 3, device="meta")

    def run() -> None:
        skip = F.conv2d(x, w[:, :, :1, :1])
        out = F.conv2d(F.group_norm(x, 4), w, padding=1)
        (skip + out) + torch.empty(1, 8, 1, 1, device="meta")

    layers = layers_of(run)
    assert layers.convs == {Conv(4, 4, 8, 8, 1, False): 1, Conv(4, 4, 8, 8, 3, True): 1}
    assert layers.norms == {Norm(4, 4, 8): 1}


def test_layers_of_a_convolution_with_a_stride_is_refused() -> None:
    x, w = torch.empty(1, 8, 4, 4, device="meta"), torch.empty(8, 8, 3, 3, device="meta")
    with pytest.raises(ValueError, match="changes the size"):
        layers_of(lambda: F.conv2d(x, w, padding=1, stride=2))


def test_layers_of_tokens_folds_them_into_the_image_they_were() -> None:
    w = torch.empty(24, 8, 1, device="meta")
    layers = layers_of(lambda: [F.conv1d(torch.empty(1, 8, t, device="meta"), w) for t in (16, 15)])
    assert set(layers.convs) == {Conv(4, 4, 8, 24, 1, False), Conv(15, 1, 8, 24, 1, False)}


def test_conv_padded_rounds_channels_up_to_eight() -> None:
    conv = Conv(4, 4, 7, 3, 1, False)
    assert (conv.padded.channels_in, conv.padded.channels_out) == (8, 8)
    assert Conv(4, 4, 64, 64, 3, False).padded == Conv(4, 4, 64, 64, 3, False)


def test_norm_nbytes_is_two_reads_and_a_write_of_halves() -> None:
    assert Norm(4, 5, 8).nbytes == 3 * 2 * 4 * 5 * 8


def test_by_worth_begins_with_the_most_work() -> None:
    layers = animediffusion_layers(PUBLISHED)
    work = [conv.flops * layers.convs[conv] for conv in by_worth(layers)]
    assert work == sorted(work, reverse=True)
    assert len(work) == len(layers.convs)


def test_four_shapes_are_one_of_each_level() -> None:
    shapes = four_shapes(animediffusion_layers(PUBLISHED))
    assert {(c.height, c.channels_in, c.channels_out) for c in shapes} == {
        (256, 64, 64),
        (128, 128, 128),
        (64, 256, 256),
        (32, 512, 512),
    }
    assert [replace(c, residual=False) for c in shapes] == shapes
