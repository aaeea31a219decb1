"""What a plan enqueues, in which groups; whole runs of plans are in test_device_loop.py."""

from saishiki.runtime.backends.loop_plan import Denoise, UpdateState, chunks_of, loop_program


def test_loop_program_alternates() -> None:
    assert loop_program(range(2, 4)) == (Denoise(2), UpdateState(2), Denoise(3), UpdateState(3))


def test_chunks_of_covers_every_step_once() -> None:
    assert chunks_of((0,) * 5, 2) == (range(0, 2), range(2, 4), range(4, 5))
    assert chunks_of((0,) * 4, 4) == (range(4),)
    assert chunks_of((0, 0, 0, 1, 1, 0), 2) == (range(0, 2), range(2, 3), range(3, 5), range(5, 6))
