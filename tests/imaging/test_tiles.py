import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.imaging.tiles import tiling


def test_as_measured():
    """A1111's SD upscale of 128×192 pixels, doubled, in tiles of 192 with 64 of overlap: six, three of them rows."""
    plan = tiling((256, 384), (192, 192), 64)
    assert plan.xs == (0, 64) and plan.ys == (0, 96, 192)


def test_the_last_tile_ends_where_the_picture_does():
    """With a step of 61 / 7 in floating point the last of eight tiles would begin at 60."""
    assert tiling((1, 70), (1, 9), 0).ys == (0, 8, 17, 26, 34, 43, 52, 61)


def test_seams_fade():
    plan = tiling((96, 64), (64, 64), 32)
    assert plan.xs == (0, 32)
    whole = np.asarray(plan.join([Image.new("RGB", (64, 64), "black"), Image.new("RGB", (64, 64), "white")]))
    row = whole[5, :, 0].astype(int)
    assert (
        (row[:32] == 0).all() and (row[64:] == 255).all() and row[32:64].tolist() == [i * 255 // 32 for i in range(32)]
    )
    assert (whole[:, :, 0] == row).all()


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_cut_and_joined_is_the_same(data):
    size = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    tile = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 64))
    overlap = data.draw(st.integers(0, max(0, min(*tile, 16) - 1)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    plan = tiling(size, tile, overlap)
    tiles = plan.cut(image)
    assert len(tiles) == len(plan) and {piece.size for piece in tiles} == {tile}
    assert np.abs(np.asarray(plan.join(tiles)).astype(int) - np.asarray(image)).max() <= 1
    doubled = plan.scaled(2).join([piece.resize((tile[0] * 2, tile[1] * 2), 0) for piece in tiles])
    assert doubled.size == (size[0] * 2, size[1] * 2)


def test_overlaps_that_cannot_be():
    with pytest.raises(ValueError, match="overlap by less than a tile, got 64"):
        tiling((100, 100), (64, 64), 64)
    with pytest.raises(ValueError, match="2 tiles make this picture, got 0"):
        tiling((96, 64), (64, 64), 32).join([])
