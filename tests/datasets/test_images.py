"""Images and masks of every kind that programs write."""

import numpy as np
import pytest
from PIL import Image

from nsr.datasets.images import (
    list_images,
    masks_from_alpha,
    natural_key,
    read_image,
    read_mask,
    trailing_number,
)
from nsr.utils.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
SOFT = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
HARD = np.where(SOFT > 120, 255, 0).astype(np.uint8)


def save(tmp_path, array, name="x.png", mode=None, **options):
    path = tmp_path / name
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(path, **options)
    return path


def test_natural_order():
    names = ["img_10.png", "img_2.png", "Img_1.png", "a.png", "img_02b.png"]
    assert sorted(names, key=natural_key) == ["a.png", "Img_1.png", "img_2.png", "img_02b.png", "img_10.png"]
    assert trailing_number("scan65_0012.jpg") == 12
    assert trailing_number("front.jpg") is None


def test_list_images_skips_what_is_no_image(tmp_path):
    for name in ("10.png", "9.JPG", "notes.txt", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["9.JPG", "10.png"]


def test_image_modes(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path, COLOUR)), COLOUR)
    rgba = np.dstack([COLOUR, SOFT])
    np.testing.assert_array_equal(read_image(save(tmp_path, rgba)), COLOUR)  # alpha dropped, colours untouched
    np.testing.assert_array_equal(read_image(save(tmp_path, SOFT)), np.repeat(SOFT[..., None], 3, -1))
    palette = Image.fromarray(COLOUR).quantize(256)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    jpeg = read_image(save(tmp_path, np.full((16, 16, 3), 90, np.uint8), "x.jpg"))
    assert np.abs(jpeg.astype(int) - 90).max() <= 2


def test_sixteen_bit_grey(tmp_path):
    values = SOFT.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(save(tmp_path, values))[..., 1], SOFT)
    np.testing.assert_array_equal(read_mask(save(tmp_path, values)), SOFT)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    assert read_image(save(tmp_path, COLOUR, "x.jpg", exif=exif)).shape == (5, 7, 3)


@pytest.mark.parametrize("reader", [read_image, read_mask, lambda path: masks_from_alpha([path])])
@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing"])
def test_broken_files_are_named(tmp_path, reader, kind):
    path = tmp_path / "broken.png"
    if kind == "truncated":
        big = RNG.integers(0, 256, (200, 200, 4), dtype=np.uint8)
        Image.fromarray(big).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind != "missing":
        path.write_bytes(b"not an image" if kind == "text" else b"")
    with pytest.raises(DataError, match=r"broken\.png"):
        reader(path)


def test_soft_masks_stay_soft(tmp_path):
    np.testing.assert_array_equal(read_mask(save(tmp_path, SOFT)), SOFT)


@pytest.mark.parametrize("one", [1, 128, 255])
def test_two_valued_masks_are_stretched(tmp_path, one):
    np.testing.assert_array_equal(read_mask(save(tmp_path, (HARD // 255 * one).astype(np.uint8))), HARD)
    np.testing.assert_array_equal(read_mask(save(tmp_path, (HARD // 255).astype(np.uint16) * one)), HARD)


def test_mask_modes(tmp_path):
    np.testing.assert_array_equal(read_mask(save(tmp_path, HARD, mode="1")), HARD)
    red = np.dstack([SOFT, SOFT // 3, np.zeros_like(SOFT)])
    np.testing.assert_array_equal(read_mask(save(tmp_path, red)), SOFT)  # the largest channel
    palette = Image.fromarray(HARD // 255, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # labels as segmentation tools colour them
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png"), HARD)


def test_alpha_is_the_mask_only_when_it_varies(tmp_path):
    np.testing.assert_array_equal(read_mask(save(tmp_path, np.dstack([COLOUR, SOFT]))), SOFT)
    opaque = np.dstack([HARD, HARD, HARD, np.full_like(HARD, 255)])
    np.testing.assert_array_equal(read_mask(save(tmp_path, opaque)), HARD)


def test_all_background_and_all_object(tmp_path):
    assert read_mask(save(tmp_path, np.zeros((3, 3), np.uint8))).max() == 0
    assert read_mask(save(tmp_path, np.full((3, 3), 1, np.uint8))).min() == 255


def test_masks_from_alpha(tmp_path):
    path = save(tmp_path, np.dstack([COLOUR, SOFT]))
    np.testing.assert_array_equal(masks_from_alpha([path, path])[1], SOFT)
    opaque = save(tmp_path, COLOUR, "opaque.png")
    assert masks_from_alpha([opaque, opaque]) is None
    with pytest.raises(DataError, match=r"opaque\.png.*alpha"):
        masks_from_alpha([path, opaque])
