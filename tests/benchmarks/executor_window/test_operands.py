import pytest
import torch
from executor_window.layers import Conv
from executor_window.operands import (
    ACTIVATIONS,
    BIAS,
    PLAIN,
    PROLOGUE,
    RESIDUAL_BIAS,
    Variant,
    budget_of,
    conv_reference,
    draw_operands,
    sums_reference,
)

CONV = Conv(3, 5, 8, 16, 3, residual=True)


@pytest.mark.parametrize("variant", [PLAIN, BIAS, RESIDUAL_BIAS, PROLOGUE], ids=lambda variant: variant.name)
def test_conv_reference_against_loops(variant: Variant) -> None:
    operands = draw_operands(CONV, "cpu", 1)[0]
    x = operands.x.double()
    if variant.prologue:
        scaled = x * operands.scale.double() + operands.shift.double()
        x = scaled / (1 + torch.exp(-scaled))
    expected = torch.zeros(3, 5, 16, dtype=torch.float64)
    for h in range(3):
        for w in range(5):
            for r in range(3):
                for s in range(3):
                    if 0 <= h + r - 1 < 3 and 0 <= w + s - 1 < 5:
                        expected[h, w] += operands.w[:, r, s].double() @ x[h + r - 1, w + s - 1]
    expected += operands.residual.double() if variant.residual else 0
    expected += operands.bias.double() if variant.bias else 0
    torch.testing.assert_close(conv_reference(operands, variant), expected)


def test_draw_operands_takes_two_activations_in_turns_and_a_weight_for_each_set() -> None:
    sets = draw_operands(CONV, "cpu", 5)
    assert len({operands.x.data_ptr() for operands in sets}) == ACTIVATIONS
    assert len({operands.w.data_ptr() for operands in sets}) == 5
    assert sets[0].y.isnan().all()


def test_sums_reference_of_a_constant_image() -> None:
    assert sums_reference(torch.full((2, 3, 4), 2.0)).tolist() == [[12.0] * 4, [24.0] * 4]


def test_budget_of_is_small_and_covers_fp16() -> None:
    operands = draw_operands(CONV, "cpu", 1)[0]
    truth = conv_reference(operands, BIAS)
    budget = budget_of(operands, BIAS, truth)
    assert float((conv_reference(operands, BIAS, torch.float16).double() - truth).norm() / truth.norm()) < budget < 5e-3
