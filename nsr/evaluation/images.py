"""How well rendered pictures agree with photographs: masked PSNR, SSIM and LPIPS, and the overlap of silhouettes.

Pictures are [H, W, 3] in [0, 1], masks [H, W] bool, or soft in [0, 1] and cut at one half; uint8 arrays count from 0 to
255; arrays or tensors. What is outside the mask never counts: PSNR looks only inside, and for SSIM and LPIPS, which
look at windows, both pictures are painted black outside first.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsr.utils.errors import DataError, ExtensionError

_LOG = logging.getLogger("nsr")
_SSIM_WINDOW = 11  # pixels; a Gaussian of sigma 1.5 cut at 3.5 sigma, as in the paper
Picture = np.ndarray | Tensor


def image_metrics(rendered: Picture, reference: Picture, mask: Picture, *, lpips: bool | None = None) -> dict[str, float]:
    """psnr (dB), ssim and, when the package is installed, lpips of a rendered picture against a photograph.

    Pictures with a side under 11 pixels are smaller than the window of SSIM, and have no ssim.

    Args:
        lpips: None computes it when possible and leaves the key out otherwise; True insists; False leaves it out.

    Raises:
        DataError: the shapes differ, the mask is empty, a value is not finite.
        ExtensionError: lpips=True and the package or its weights are missing.
    """
    metrics = {"psnr": masked_psnr(rendered, reference, mask)}
    if min(mask.shape) >= _SSIM_WINDOW:
        metrics["ssim"] = masked_ssim(rendered, reference, mask)
    if lpips is False:
        return metrics
    try:
        metrics["lpips"] = masked_lpips(rendered, reference, mask)
    except ExtensionError as error:
        if lpips:
            raise
        _LOG.debug("%s", error)
    return metrics


def masked_psnr(rendered: Picture, reference: Picture, mask: Picture) -> float:
    """10 log10(1 / MSE) in dB, the mean squared error taken over channels and the pixels whose mask is above one half.

    inf for equal pictures. Raises DataError as `image_metrics` does.
    """
    rendered, reference, mask = _checked(rendered, reference, mask)
    error = float(np.mean((rendered[mask] - reference[mask]) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def affine_corrected(rendered: Picture, reference: Picture, mask: Picture) -> np.ndarray:
    """The rendered picture [H, W, 3], float64, under the affine map of colours that brings it closest to the reference inside
    the mask, by least squares (3x3 matrix and offset).

    Takes differences of exposure and white balance out of a comparison, as is custom where photographs differ in them. The map
    is fitted to the very photograph that is measured on, so say beside any figure that it was. Raises DataError as
    `image_metrics` does.
    """
    rendered, reference, mask = _checked(rendered, reference, mask)
    with_one = np.concatenate([rendered, np.ones((*mask.shape, 1))], axis=-1)
    map_, *_ = np.linalg.lstsq(with_one[mask], reference[mask], rcond=None)
    return (with_one @ map_).clip(0, 1)


def masked_ssim(rendered: Picture, reference: Picture, mask: Picture) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13; Gaussian window of sigma 1.5), averaged over the mask's pixels.

    Raises DataError as `image_metrics` does, and for a picture with a side under 11 pixels.
    """
    from skimage.metrics import structural_similarity

    rendered, reference, mask = _checked(rendered, reference, mask)
    if min(mask.shape) < _SSIM_WINDOW:
        raise DataError(f"masked_ssim: expected pictures of at least {_SSIM_WINDOW} pixels a side, got {mask.shape}")
    _, similarity = structural_similarity(
        rendered * mask[..., None],
        reference * mask[..., None],
        channel_axis=-1,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(similarity[mask].mean())


def masked_lpips(rendered: Picture, reference: Picture, mask: Picture) -> float:
    """Learned perceptual distance (Zhang et al. 2018; AlexNet, version 0.1) of the pictures, black outside the mask.

    Raises:
        DataError: as `image_metrics` does.
        ExtensionError: the package `lpips` or its weights are not there.
    """
    rendered, reference, mask = _checked(rendered, reference, mask)
    network = _lpips_network()
    pair = torch.from_numpy(np.stack([rendered, reference]) * mask[..., None]).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        return float(network(pair[:1] * 2 - 1, pair[1:] * 2 - 1))


@lru_cache(maxsize=1)
def _lpips_network() -> Any:
    try:
        import lpips
    except ImportError as error:
        raise ExtensionError("LPIPS: the package lpips is not installed; run: pip install 'nsr[lpips]'") from error
    try:
        return lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:  # the weights are downloaded: any network or file error
        message = f"LPIPS: the weights of AlexNet could not be loaded ({error}); is there a network?"
        raise ExtensionError(message) from error


def silhouette_iou(predicted: Picture, reference: Picture) -> float:
    """Intersection over union of two masks [H, W]; 1 when both are empty. Raises DataError when the shapes differ."""
    predicted, reference = _as_mask(predicted), _as_mask(reference)
    if predicted.shape != reference.shape:
        raise DataError(f"silhouette_iou: expected two masks of one size, got {predicted.shape} and {reference.shape}")
    union = np.logical_or(predicted, reference).sum()
    return float(np.logical_and(predicted, reference).sum() / union) if union else 1.0


def _checked(rendered: Picture, reference: Picture, mask: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 pictures and a bool mask of one size."""
    rendered, reference, mask = _as_picture(rendered), _as_picture(reference), _as_mask(mask)
    if rendered.shape != (*mask.shape, 3) or reference.shape != rendered.shape:
        raise DataError(
            "image metrics: expected two pictures [H, W, 3] and a mask [H, W], got "
            f"{list(rendered.shape)}, {list(reference.shape)} and {list(mask.shape)}"
        )
    if not mask.any():
        raise DataError("image metrics: the mask is empty, so there is nothing to compare; leave this view out")
    if not (np.isfinite(rendered).all() and np.isfinite(reference).all()):
        raise DataError("image metrics: a picture has NaN or infinite values; has the model diverged?")
    return rendered, reference, mask


def _as_array(values: Picture) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _as_picture(values: Picture) -> np.ndarray:
    array = _as_array(values)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def _as_mask(values: Picture) -> np.ndarray:
    array = _as_array(values)
    return array if array.dtype == bool else array > (127.5 if array.dtype == np.uint8 else 0.5)
