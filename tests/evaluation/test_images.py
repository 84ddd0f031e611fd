"""Picture metrics against closed forms, and that nothing outside the mask counts."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from nsr.evaluation.images import affine_corrected, image_metrics, masked_psnr, masked_ssim, silhouette_iou
from nsr.utils.errors import DataError, ExtensionError


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.1, 0.9, (10, 12, 3))
    return coarse.repeat(5, axis=0).repeat(5, axis=1)


@pytest.fixture
def mask():
    mask = np.zeros((50, 60), dtype=bool)
    mask[10:40, 15:50] = True
    return mask


def test_psnr_of_a_constant_offset(picture, mask):
    rendered = picture + np.where(mask, 0.1, 0.7)[..., None]
    assert masked_psnr(rendered, picture, mask) == pytest.approx(20)
    assert masked_psnr(picture, picture, mask) == float("inf")


def test_an_affine_change_of_colours_is_taken_out(picture, mask):
    map_ = np.array([[0.5, 0.1, 0.0], [0.0, 0.6, 0.1], [0.05, 0.0, 0.7]])
    taken = picture @ map_.T + [0.05, -0.02, 0.1]
    assert masked_psnr(picture, taken, mask) < 20
    assert masked_psnr(affine_corrected(picture, taken, mask), taken, mask) > 100
    # What is outside the mask has no part in the map.
    assert masked_psnr(affine_corrected(picture, np.where(mask[..., None], taken, 0.0), mask), taken, mask) > 100
    noise = np.random.default_rng(0).normal(0, 0.1, picture.shape)
    assert masked_psnr(affine_corrected(picture + noise, taken, mask), taken, mask) < 30


def test_ssim_of_a_change_of_contrast(picture, mask):
    """With windows well inside, y = m + a (x - m) per window gives 2 a / (1 + a^2) up to the constants."""
    assert masked_ssim(picture, picture, mask) == pytest.approx(1)
    flat = np.full_like(picture, 0.5)
    rng = np.random.default_rng(1)
    noise = 0.2 * rng.standard_normal(picture.shape)
    everywhere = np.ones_like(mask)
    assert masked_ssim(flat + 0.5 * noise, flat + noise, everywhere) == pytest.approx(0.8, abs=0.02)
    assert masked_ssim(flat - noise, flat + noise, everywhere) < -0.8


def test_the_outside_does_not_count(picture, mask):
    rng = np.random.default_rng(2)
    rendered = picture + 0.05
    before = image_metrics(rendered, picture, mask, lpips=False)
    rendered[~mask] = rng.uniform(size=rendered[~mask].shape)
    assert image_metrics(rendered, picture, mask, lpips=False) == before


def test_kinds_of_input_agree(picture, mask):
    bytes_a, bytes_b = (np.round(p * 255).astype(np.uint8) for p in (picture, picture * 0.9))
    expected = image_metrics(bytes_a / 255, bytes_b / 255, mask, lpips=False)
    soft = np.where(mask, 200, 100).astype(np.uint8)
    assert image_metrics(torch.from_numpy(bytes_a), bytes_b, soft, lpips=False) == pytest.approx(expected)
    tensors = (torch.from_numpy(p / 255).float() for p in (bytes_a, bytes_b))
    assert image_metrics(*tensors, torch.from_numpy(soft / 255), lpips=False) == pytest.approx(expected, rel=1e-5)


def test_silhouettes():
    a, b = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    a[:6], b[4:] = True, True
    assert silhouette_iou(a, b) == pytest.approx(0.2)
    assert silhouette_iou(torch.from_numpy(a).float(), a) == 1
    assert silhouette_iou(a, ~a) == 0
    assert silhouette_iou(a & ~a, a & ~a) == 1
    with pytest.raises(DataError, match="one size"):
        silhouette_iou(a, b[:5])


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="tests what happens without lpips")
def test_lpips_is_optional(picture, mask):
    assert set(image_metrics(picture, picture, mask)) == {"psnr", "ssim"}
    with pytest.raises(ExtensionError, match=r"nsr\[lpips\]"):
        image_metrics(picture, picture, mask, lpips=True)


def test_errors(picture, mask):
    with pytest.raises(DataError, match="mask is empty"):
        masked_psnr(picture, picture, mask & ~mask)
    with pytest.raises(DataError, match="expected two pictures"):
        masked_psnr(picture[:40], picture, mask)
    with pytest.raises(DataError, match="NaN"):
        masked_psnr(picture * np.nan, picture, mask)
    with pytest.raises(DataError, match="11 pixels"):
        masked_ssim(picture[:8, :8], picture[:8, :8], np.ones((8, 8), dtype=bool))
