from collections.abc import Iterator

import pytest
import torch
from battery.part import Options
from battery.plan_subjects import Subject, animediffusion


@pytest.fixture(scope="session")
def plan_subject() -> Iterator[Subject]:
    """The plan that dry runs measure, made once."""
    with torch.no_grad():
        yield animediffusion(Options(dry_run=True))
