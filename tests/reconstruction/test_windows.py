import numpy as np
import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.reconstruction.windows import blend_weights, blend_windows, slice_windows


@pytest.mark.parametrize("slices", [1, 2, 5, 64, 65, 66, 131])
@pytest.mark.parametrize(("window", "overlap"), [(65, 0), (65, 16), (65, 32), (8, 4), (1, 0), (9, 2)])
def test_windows_cover_every_slice_and_share_exactly_the_overlap(slices, window, overlap):
    windows = slice_windows(slices, window, overlap)
    assert windows[0][0] == 0
    assert windows[-1][1] == slices
    assert all(0 < stop - start <= window for start, stop in windows)
    assert all(after[0] == before[1] - overlap for before, after in zip(windows, windows[1:]))
    assert all(after[1] > before[1] for before, after in zip(windows, windows[1:]))
    covered = np.zeros(slices, dtype=int)
    for start, stop in windows:
        covered[start:stop] += 1
    assert covered.min() >= 1
    assert covered.max() <= 2


@pytest.mark.parametrize("slices", [1, 64, 65, 66, 130, 131, 200])
def test_without_overlap_the_windows_are_the_papers(slices):
    # the released scripts: non-overlapping windows of 65 along the slices, the last one short
    papers = [(start, min(start + 65, slices)) for start in range(0, slices, 65)]
    assert slice_windows(slices, 65, 0) == papers


@pytest.mark.parametrize(("window", "overlap"), [(65, 33), (8, -1), (0, 0), (1, 1)])
def test_impossible_windows_are_refused(window, overlap):
    with pytest.raises(UserError):
        slice_windows(10, window, overlap)


@pytest.mark.parametrize("overlap", [1, 2, 16, 33])
def test_weights_rise_strictly_inside_zero_and_one_and_mirror_to_one(overlap):
    weights = blend_weights(overlap)
    assert weights.dtype == np.float32
    assert weights[0] > 0
    assert weights[-1] < 1
    assert np.all(np.diff(weights) > 0)
    np.testing.assert_allclose(weights + weights[::-1], 1, atol=1e-6)


def blend_by_weighted_mean(pieces, windows, slices, overlap):
    """The same blending written down the long way: sum of weight times piece over sum of weights, in float64."""
    total = np.zeros((slices, 2, 3))
    weight_sum = np.zeros((slices, 1, 1))
    for number, (piece, (start, stop)) in enumerate(zip(pieces, windows)):
        weight = np.ones(stop - start)
        for j in range(overlap):
            ramp = np.sin((j + 1) / (overlap + 1) * np.pi / 2) ** 2
            if number > 0:
                weight[j] = ramp
            if number < len(windows) - 1:
                weight[stop - start - overlap + j] = 1 - ramp
        total[start:stop] += weight[:, None, None] * piece
        weight_sum[start:stop] += weight[:, None, None]
    np.testing.assert_allclose(weight_sum, 1, atol=1e-12)
    return total / weight_sum


@pytest.mark.parametrize(
    ("slices", "window", "overlap"), [(131, 65, 16), (131, 65, 0), (20, 8, 4), (20, 9, 2), (5, 8, 4)]
)
def test_blending_equals_the_weighted_mean_written_out(slices, window, overlap):
    rng = np.random.default_rng(0)
    windows = slice_windows(slices, window, overlap)
    pieces = [rng.normal(size=(stop - start, 2, 3)).astype(np.float32) for start, stop in windows]
    copies = [piece.copy() for piece in pieces]
    volume = np.concatenate(list(blend_windows(copies, overlap)))
    np.testing.assert_allclose(volume, blend_by_weighted_mean(pieces, windows, slices, overlap), atol=1e-5)


def test_windows_that_agree_come_back_to_the_bit():
    source = np.random.default_rng(1).normal(size=(131, 4, 4)).astype(np.float32)
    windows = [source[start:stop].copy() for start, stop in slice_windows(131, 65, 16)]
    assert np.array_equal(np.concatenate(list(blend_windows(windows, 16))), source)


def test_slices_are_handed_on_as_soon_as_they_are_final():
    taken = []

    def windows():
        for start, stop in slice_windows(200, 65, 16):
            taken.append(stop)
            yield np.zeros((stop - start, 1, 1), dtype=np.float32)

    blended = blend_windows(windows(), 16)
    assert len(next(blended)) == 49
    assert taken == [65, 114]
