from collections.abc import Callable, Iterator
from typing import Any

import battery.network
import pytest
import torch
from battery import animediffusion
from battery.animediffusion import compiled, eager, graph
from battery.network import Network, build_network
from battery.part import Options, Row
from executor_window.layers import animediffusion_layers

DRY_RUN = Options(dry_run=True)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("part", "rows"), [(eager, 3), (graph, 5), (compiled, 3)], ids=["eager", "graph", "compiled"])
def test_part_runs_to_its_end_and_times_nothing(part: Callable[[Options], Iterator[Row]], rows: int) -> None:
    found = list(part(DRY_RUN))
    assert len(found) == rows
    assert all(row["error"] <= row["budget"] for row in found if "error" in row)
    assert not any("p50_ms" in row or row.get("red") for row in found)


def test_graph_of_a_wrong_network_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(options: Options, **how: bool) -> Network:
        network = build_network(options, **how)
        network.noisy.mul_(1.1)
        return network

    monkeypatch.setattr(animediffusion, "build_network", wrong)
    assert all(row["red"] for row in graph(DRY_RUN))


def test_build_network_is_the_same_at_every_call() -> None:
    first, second = (build_network(DRY_RUN, half=False, channels_last=False) for _ in range(2))
    with torch.no_grad():
        assert torch.equal(first.predict(), second.predict())
        assert first.sample().shape == (1, 3, 32, 32)
    assert len(first.time) == DRY_RUN.steps


def test_with_our_norms_replaces_every_norm_before_a_silu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    reference = battery.network.group_norm_silu_reference

    def counted(x: Any, *arguments: Any, **how: Any) -> Any:
        calls.append(x.shape[1])
        return reference(x, *arguments, **how)

    monkeypatch.setattr(battery.network, "group_norm_silu_reference", counted)
    plain, ours = (build_network(DRY_RUN, half=False, channels_last=True, our_norms=own) for own in (False, True))
    with torch.no_grad():
        expected, found = plain.predict(), ours.predict()
    norms = animediffusion_layers(DRY_RUN).norms
    # The attention's norm has no SiLU behind it.
    assert len(calls) == sum(norms.values()) - 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_network_sample_takes_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("battery.network.sampler_step", lambda x: lambda x, eps, solver, k: taken.append(k))
    with torch.no_grad():
        build_network(DRY_RUN, half=False, channels_last=False).sample()
    assert taken == [0, 1, 2]
