"""Which rows guidance makes, and in what order."""

import pytest
import torch

from saishiki.models.colorizediffusion.guidance import ROWS, repeat_rows
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES, SLOTS, Guidance

CONDITIONAL, BLANK = 1.0, 3.0
WIDENED = {"none": [1, 1], "reference": [1, 1, 1, 1], "sketch": [1, 1, 3, 3], "both": [1, 1, 1, 1, 3, 3]}
INSERTED = {"none": [1, 1], "reference": [1, 1, 7, 7], "sketch": [1, 1, 3, 3], "both": [1, 1, 7, 7, 3, 3]}


def drawn_rows(guidance: Guidance) -> torch.Tensor:
    """Two pictures: the conditional rows, and where there are such those without a sketch."""
    values = [CONDITIONAL, BLANK][: ROWS[guidance].drawn]
    return torch.tensor(values).repeat_interleave(2)[:, None, None].expand(-1, 5, 4)


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_rows_are_the_slots_that_the_runtime_expects(guidance: Guidance) -> None:
    assert ROWS[guidance].slots == SLOTS[guidance]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_widen_repeats_the_conditional_rows(guidance: Guidance) -> None:
    widened = ROWS[guidance].widen(drawn_rows(guidance))
    assert widened[:, 0, 0].tolist() == WIDENED[guidance]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_insert_empty_puts_a_value_behind_the_conditional_rows(guidance: Guidance) -> None:
    inserted = ROWS[guidance].insert_empty(drawn_rows(guidance), torch.full((4,), 7.0))
    assert inserted[:, 0, 0].tolist() == INSERTED[guidance]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_with_context_undoes_both(guidance: Guidance) -> None:
    rows, drawn = ROWS[guidance], drawn_rows(guidance)
    torch.testing.assert_close(rows.with_context(rows.widen(drawn)), drawn)
    torch.testing.assert_close(rows.with_context(rows.insert_empty(drawn, torch.zeros(1))), drawn)


def test_repeat_rows_repeats_all_rows_before_the_next_copy() -> None:
    assert repeat_rows(torch.tensor([[1], [2]]), 3)[:, 0].tolist() == [1, 2, 1, 2, 1, 2]
