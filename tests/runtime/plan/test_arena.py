import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saishiki.runtime.plan import Arena, Buffer, Plan, lay_out
from saishiki.runtime.plan.arena import ALIGNMENT_BYTES, Lifetime, lifetimes
from saishiki.runtime.plan.ops import Copy
from saishiki.runtime.signature import Signature
from tests.runtime.plan.running import strided

NOTHING = Signature((), (), {})
# For each buffer its bytes, and the first and the last operation that touch it.
Spans = list[tuple[int, int, int]]


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    count = draw(st.integers(1, 12))
    span = st.tuples(st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9))
    return [(nbytes, min(a, b), max(a, b)) for nbytes, a, b in draw(st.lists(span, min_size=count, max_size=count))]


def plan_of(buffers: Spans) -> Plan:
    """Operations that read what is alive as they run, and write outside of the plan's buffers."""
    return Plan(
        version=1,
        dtype="float16",
        buffers={f"b{i}": Buffer("uint8", (str(nbytes),)) for i, (nbytes, *_) in enumerate(buffers)},
        hoisted={},
        weights={},
        ops=tuple(_touching(buffers, place) for place in range(places(buffers))),
    )


def places(buffers: Spans) -> int:
    return 1 + max((last for *_, last in buffers), default=0)


def _touching(buffers: Spans, place: int) -> Copy:
    touched = [i for i, (_, *ends) in enumerate(buffers) if place in ends]
    return Copy(tuple(strided(f"b{i}", (1,), (1,)) for i in touched), 0, strided("elsewhere", (1,), (1,)))


def laid_out(buffers: Spans) -> Arena:
    plan = plan_of(buffers)
    return lay_out(plan, plan.extents(NOTHING, {}))


def alive(buffers: Spans, place: int) -> list[int]:
    return [i for i, (_, first, last) in enumerate(buffers) if first <= place <= last]


@given(spans())
def test_buffers_that_are_alive_together_lie_apart(buffers):
    assert_apart(buffers, laid_out(buffers))


def assert_apart(buffers, arena):
    for place in range(places(buffers)):
        parts = sorted((arena.offsets[f"b{i}"], buffers[i][0]) for i in alive(buffers, place))
        for (offset, nbytes), (behind, _) in itertools.pairwise(parts):
            assert offset + nbytes <= behind


@given(spans())
def test_offsets_are_aligned_and_inside(buffers):
    arena = laid_out(buffers)
    assert arena.offsets.keys() == {f"b{i}" for i in range(len(buffers))}
    for i, (nbytes, *_) in enumerate(buffers):
        offset = arena.offsets[f"b{i}"]
        assert offset % ALIGNMENT_BYTES == 0 <= offset <= arena.nbytes - nbytes
    assert arena.nbytes % ALIGNMENT_BYTES == 0


@given(spans())
def test_least_bytes_is_what_is_alive_at_once(buffers):
    arena = laid_out(buffers)
    rounded = [-(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for nbytes, *_ in buffers]
    assert arena.least_bytes == max(sum(rounded[i] for i in alive(buffers, place)) for place in range(places(buffers)))
    assert arena.least_bytes <= arena.nbytes <= sum(rounded)


def test_a_chain_takes_two_buffers():
    """Each operation reads what the one before it wrote."""
    arena = laid_out([(1000, i, i + 1) for i in range(9)])
    assert arena == Arena({f"b{i}": 1024 * (i % 2) for i in range(9)}, 2048, 2048)


def test_the_smallest_gap_is_taken():
    """The last buffer fits where b1 was and where b3 was."""
    arena = laid_out([(2048, 0, 9), (1792, 0, 2), (1536, 0, 9), (1280, 0, 2), (1024, 0, 9), (700, 4, 5)])
    assert [arena.offsets[f"b{i}"] for i in range(6)] == [0, 2048, 3840, 5376, 6656, 5376]
    assert (arena.nbytes, arena.least_bytes) == (7680, 7680)


def test_what_fits_no_gap_goes_behind():
    """Where b1 was, b3 leaves 256 bytes."""
    arena = laid_out([(1024, 0, 9), (768, 0, 2), (768, 0, 9), (512, 4, 9), (512, 4, 5)])
    assert [arena.offsets[f"b{i}"] for i in range(5)] == [0, 1024, 1792, 1024, 2560]
    assert (arena.nbytes, arena.least_bytes) == (3072, 2816)


def test_buffers_of_one_operation_do_not_share():
    """What an operation reads for the last time and what it writes for the first."""
    arena = laid_out([(256, 0, 4), (256, 4, 9)])
    assert sorted(arena.offsets.values()) == [0, 256]


def test_a_plan_without_buffers():
    assert laid_out([]) == Arena({}, 0, 0)


def test_lifetimes():
    plan = plan_of([(1, 0, 3), (256, 2, 2), (257, 5, 9)])
    assert lifetimes(plan, plan.extents(NOTHING, {})) == {
        "b0": Lifetime(0, 3, 256),
        "b1": Lifetime(2, 2, 256),
        "b2": Lifetime(5, 9, 512),
    }


@pytest.mark.parametrize(
    ("first", "last", "meets"), [(0, 1, False), (0, 2, True), (3, 3, True), (4, 9, True), (5, 9, False)]
)
def test_meets(first, last, meets):
    own, other = Lifetime(2, 4, 256), Lifetime(first, last, 256)
    assert own.meets(other) is other.meets(own) is meets


def unet(levels: int, blocks: int, least: int) -> Spans:
    """Blocks of four launches, with skips from the encoder's to the decoder's; a level has half the bytes of the last.

    Every launch reads what the one before wrote. The last of a block reads the block's input too.
    """
    spans = [[least << levels, 0, 0]]
    skips: list[int] = []
    for level, is_decoder in [*((i, False) for i in range(levels)), *((i, True) for i in reversed(range(levels)))]:
        for _ in range(blocks):
            x, place = len(spans) - 1, spans[-1][1]
            if is_decoder:
                spans[skips.pop()][2] = place + 1
            spans += [[least << (levels - level), place + step, place + step + 1] for step in range(1, 5)]
            spans[x][2] = max(spans[x][2], place + 4)
            if not is_decoder:
                skips.append(len(spans) - 1)
    return [(nbytes, first, min(last, spans[-1][1])) for nbytes, first, last in spans]


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 2)])
@pytest.mark.parametrize("least", [256, 1000, 65536])
def test_arena_of_a_unet_is_near_the_least(levels, blocks, least):
    buffers = unet(levels, blocks, least)
    arena = laid_out(buffers)
    assert_apart(buffers, arena)
    assert arena.least_bytes <= arena.nbytes <= 1.15 * arena.least_bytes
    assert 2 * arena.nbytes < sum(nbytes for nbytes, *_ in buffers)
