"""Masks grow within their image."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from nsr.geometry.masks import dilate


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
def test_a_mask_grows_as_scipys_and_alike_among_others(radius):
    masks = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(radius)) < 0.01
    square = np.ones((1, 2 * radius + 1, 2 * radius + 1), bool)
    expected = torch.from_numpy(binary_dilation(masks.numpy(), square))
    assert masks.any()
    assert torch.equal(dilate(masks, radius), expected)
    assert torch.equal(dilate(masks[1], radius), expected[1])
