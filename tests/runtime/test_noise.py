import numpy as np
import pytest

from saishiki.runtime.noise import NoiseSource, draw_noise, seeds_for


def test_draw_noise_is_the_same_for_ever():
    noise = draw_noise((0, 7), (3, 2, 2), steps=1)
    got = [noise.start[0, 0], noise.start[1, 2], noise.steps[0, 1, 2]]
    want = [
        [[-0.24822916, -0.02676702], [-1.9444163, 0.524578]],
        [[0.4782218, 0.3224638], [0.96547824, -0.59112996]],
        [[-1.3329269, 1.1509175], [-0.2585544, 0.93750393]],
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_draw_noise_shapes():
    noise = draw_noise((1, 2, 3), (3, 4, 5), steps=6)
    assert (noise.start.shape, noise.steps.shape) == ((3, 3, 4, 5), (6, 3, 3, 4, 5))
    assert noise.start.dtype == noise.steps.dtype == np.float32
    assert draw_noise((1,), (3, 4, 5), steps=0).steps is None


def test_draw_noise_of_an_image_does_not_depend_on_its_batch():
    batch, alone = draw_noise((4, 9), (3, 8, 8), steps=3), draw_noise((9,), (3, 8, 8), steps=3)
    np.testing.assert_array_equal(batch.start[1], alone.start[0])
    np.testing.assert_array_equal(batch.steps[:, 1], alone.steps[:, 0])


def test_draw_noise_starts_alike_with_and_without_steps():
    np.testing.assert_array_equal(
        draw_noise((5,), (3, 8, 8), steps=0).start, draw_noise((5,), (3, 8, 8), steps=10).start
    )


def test_draw_noise_is_gaussian_and_independent():
    noise = draw_noise(range(4), (3, 32, 32), steps=3)
    values = np.stack([noise.start, *noise.steps]).reshape(16, -1).astype(np.float64)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=0.1)
    np.testing.assert_allclose(np.corrcoef(values), np.eye(16), atol=0.1)


@pytest.mark.parametrize(
    ("seed", "batch", "seeds"),
    [
        (5, 3, (5, 6, 7)),
        (np.int64(5), 2, (5, 6)),
        ([9, 1], 2, (9, 1)),
        ((2**80,), 1, (2**80,)),
        (np.array([3, 4]), 2, (3, 4)),
    ],
)
def test_seeds_for(seed, batch, seeds):
    assert seeds_for(seed, batch) == seeds


@pytest.mark.parametrize(
    ("seed", "batch", "message"),
    [
        (-1, 2, "seeds must not be negative, got -1"),
        ([1, -7], 2, "seeds must not be negative, got -7"),
        ([1, 2, 3], 2, "expected one seed or 2 of them, one per image; got 3"),
        ([], 1, "expected one seed or 1 of them, one per image; got 0"),
    ],
)
def test_seeds_for_refuses(seed, batch, message):
    with pytest.raises(ValueError, match=message):
        seeds_for(seed, batch)


@pytest.mark.parametrize("seed", [1.5, [1.0], "7", None])
def test_seeds_for_must_be_whole(seed):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        seeds_for(seed, 1)


SHAPE = (3, 4, 4)


def test_noise_source_draws_a_part_as_it_would_the_whole():
    whole, source = draw_noise((5, 6, 7), SHAPE, steps=2), NoiseSource(None, (5, 6, 7), SHAPE, 2)
    np.testing.assert_array_equal(source.of(slice(1, 3)).start, whole.start[1:])
    np.testing.assert_array_equal(source.of(slice(1, 3)).steps, whole.steps[:, 1:])
    np.testing.assert_array_equal(source.of(slice(2, 9)).start, whole.start[2:])


def test_noise_source_hands_out_what_was_given():
    given, drawn = draw_noise((1, 2, 3), SHAPE, steps=2), draw_noise((5, 6, 7), SHAPE, steps=2)
    both = NoiseSource(given, (5, 6, 7), SHAPE, 2).of(slice(0, 2))
    np.testing.assert_array_equal(both.start, given.start[:2])
    np.testing.assert_array_equal(both.steps, given.steps[:, :2])
    start_only = NoiseSource(given.start, (5, 6, 7), SHAPE, 2).of(slice(2, 4))
    np.testing.assert_array_equal(start_only.start, given.start[2:])
    np.testing.assert_array_equal(start_only.steps, drawn.steps[:, 2:])


def test_noise_source_refuses_other_shapes():
    given = draw_noise((1, 2), SHAPE, steps=2)
    with pytest.raises(ValueError, match=r"start noise: expected \(3, 3, 4, 4\), got \(2, 3, 4, 4\)"):
        NoiseSource(given.start, (5, 6, 7), SHAPE, 2)
    with pytest.raises(ValueError, match=r"step noise: expected \(9, 2, 3, 4, 4\), got \(2, 2, 3, 4, 4\)"):
        NoiseSource(given, (5, 6), SHAPE, 9)
    with pytest.raises(ValueError, match="step noise: expected None, since no step of this run adds noise, got"):
        NoiseSource(given, (5, 6), SHAPE, 0)
