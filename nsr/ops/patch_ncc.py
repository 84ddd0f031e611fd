"""Photometric consistency: does a surface point look alike in the photographs that see it?

The patch of pixels around a point in its reference view is warped by the point's tangent plane into source views, and
compared there by zero-mean normalised cross-correlation (NCC). A wrong depth or normal misplaces the patch and lowers the
NCC, so its derivative moves the surface: Darmon et al., NeuralWarp (2022), section 3.2; Fu et al., Geo-Neus (2022), section
3.4; Zhang et al., Vis-MVSNet (2020). Maths, with closed-form derivatives: csrc/kernels/patch_ncc.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsr import _ext
from nsr.ops.reference import patch_ncc as reference
from nsr.types import Cameras

MAX_PATCH = 11  # kMaxPatch of csrc/kernels/patch_ncc.h
# Added to the variances of both patches, for grey values in [0, 1]: what rounding to 8 bits and a little noise make of a
# uniform patch (a standard deviation of 0.003). Without texture the NCC tends to 0, with slopes that stay bounded.
VARIANCE_FLOOR = 1.0e-5


@dataclass(frozen=True)
class PatchImages:
    """V photographs of one size with what `patch_ncc` needs of their cameras; made by `patch_images`, constants to autograd.

    images: [V, H, W] grey values, NaN where there is nothing to compare (background).
    ray_matrices: [V, 3, 3] R K^-1: pixel (u, v, 1) to the direction of its ray in the scene frame, not unit.
    projections: [V, 3, 3] K R^T: scene point minus camera centre to homogeneous pixel, the last number being the depth.
    centers: [V, 3] camera centres, scene frame.
    """

    images: Float[Tensor, "V H W"]
    ray_matrices: Float[Tensor, "V 3 3"]
    projections: Float[Tensor, "V 3 3"]
    centers: Float[Tensor, "V 3"]


class PatchNcc(NamedTuple):
    """ncc: [N, K] in [-1, 1], 0 where not valid; valid: [N, K] bool, which pairs could be compared."""

    ncc: Tensor
    valid: Tensor


def patch_images(grey: Float[Tensor, "V H W"], cameras: Cameras) -> PatchImages:
    """Prepares the photographs of one pyramid level, once, for any number of calls of `patch_ncc`.

    Args:
        grey: [V, H, W] float32 or float64, at least 2 x 2 pixels, NaN where there is nothing to compare. On the scale [0, 1]
            by choice of VARIANCE_FLOOR and of the argument min_std.
        cameras: V cameras of images of this size: intrinsics in pixels of this level.

    Raises:
        ValueError: the images are not of that kind, or the cameras are of another number or size.
    """
    if grey.dim() != 3 or min(grey.shape[1:]) < 2 or grey.dtype not in (torch.float32, torch.float64):
        found = f"{grey.dtype} of shape {tuple(grey.shape)}"
        raise ValueError(f"patch_images: grey is {found}; expected float32 or float64 [V, H, W] of 2 x 2 pixels or more")
    size = (len(cameras), cameras.height, cameras.width)
    if size != tuple(grey.shape):
        raise ValueError(
            f"patch_images: grey has shape {tuple(grey.shape)}, the cameras are {size[0]} of {size[1]} x {size[2]} pixels "
            "(rows x columns); expected the cameras of these images, at this level of the pyramid"
        )
    intrinsics, pose = cameras.intrinsics.detach().double(), cameras.camera_to_world.detach().double()
    rotation = pose[:, :3, :3]
    matrices = rotation @ torch.linalg.inv(intrinsics), intrinsics @ rotation.transpose(1, 2), pose[:, :3, 3]
    return PatchImages(grey.detach().contiguous(), *(m.to(grey.device, grey.dtype).contiguous() for m in matrices))


def patch_ncc(
    x: Float[Tensor, "N 3"],
    normal: Float[Tensor, "N 3"],
    pixels: Float[Tensor, "N 2"],
    view: Int[Tensor, " N"],
    sources: Int[Tensor, "N K"],
    images: PatchImages,
    patch: int = 7,
    min_std: float = 0.0,
) -> PatchNcc:
    """NCC of the patch of N points with K source views each; once differentiable with respect to x and normal.

    A second derivative raises by name. What a point gets depends neither on the other points nor on the number of threads.

    Args:
        x: [N, 3] surface points, scene frame, float32 or float64; normal: [N, 3] their outward normals, of any length (the
            gradient of the SDF).
        pixels: [N, 2] where their reference views see them, in pixels (u, v) of the images; need not be integers. A constant
            to autograd, like the images.
        view: [N] int64 reference views; sources: [N, K] int64 source views, -1 for none.
        images: the photographs, of the dtype and device of x.
        patch: P, odd, 3 to 11: the patch is the P x P pixels (pixel spacing 1) around the point's pixel.
        min_std: a reference patch whose grey values have a smaller standard deviation is not compared; 0 compares all.

    Returns:
        PatchNcc. A pair is not valid, its NCC 0 and its derivatives 0, when: there is no source; a sample of either patch is
        not between the pixel centres of its image, or one of the four pixels around it is NaN; the tangent plane is behind the
        reference camera, or seen from behind by either camera, or met by a ray of the patch at a cosine below 0.01 (edge-on);
        a sample is behind the source camera; the reference patch is below min_std; x, normal or pixels are NaN.

    Raises:
        ValueError: a tensor's shape, dtype or device does not fit; patch or min_std is out of range; view or sources names a
            view that does not exist (on the CPU: elsewhere looking would wait for the device, and the pair is not valid).
    """
    _check_tensors(x, normal, pixels, view, sources, images)
    if not (3 <= patch <= MAX_PATCH and patch % 2 == 1):
        raise ValueError(f"patch_ncc: patch is {patch}; expected an odd number, 3 to {MAX_PATCH}")
    if not min_std >= 0:
        raise ValueError(f"patch_ncc: min_std is {min_std}; expected 0 or more")
    photographs = images.images, images.ray_matrices, images.projections, images.centers
    arguments = x, normal, pixels.detach(), view, sources, *photographs, patch, VARIANCE_FLOOR, min_std
    if _ext.backend() == "reference":
        return PatchNcc(*reference.patch_ncc(*arguments))
    keep = torch.is_grad_enabled() and (x.requires_grad or normal.requires_grad)
    return PatchNcc(*torch.ops.nsr.patch_ncc(*arguments, keep)[:2])


def _check_tensors(x: Tensor, normal: Tensor, pixels: Tensor, view: Tensor, sources: Tensor, images: PatchImages) -> None:
    if x.dim() != 2 or x.shape[1] != 3 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"patch_ncc: x is {x.dtype} of shape {tuple(x.shape)}; expected float32 or float64 [N, 3]")
    n, k = x.shape[0], sources.shape[-1] if sources.dim() == 2 else "K"
    wanted = {
        "normal": (normal, (n, 3), x.dtype),
        "pixels": (pixels, (n, 2), x.dtype),
        "images": (images.images, tuple(images.images.shape), x.dtype),
        "view": (view, (n,), torch.int64),
        "sources": (sources, (n, k), torch.int64),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"patch_ncc: {name} has shape {tuple(tensor.shape)}; expected {list(shape)} for {n} points x")
        if tensor.dtype != dtype or tensor.device != x.device:
            found, expected = f"{tensor.dtype} on {tensor.device}", f"{dtype} on {x.device}, as x"
            raise ValueError(f"patch_ncc: {name} is {found}; expected {expected}")
    views = images.images.shape[0]
    for name, tensor, least in (("view", view, 0), ("sources", sources, -1)):
        if tensor.device.type == "cpu" and tensor.numel():
            low, high = (bound.item() for bound in tensor.aminmax())
            if low < least or high >= views:
                wrong = low if low < least else high
                raise ValueError(f"patch_ncc: {name} names view {wrong}; expected {least} to {views - 1} for {views} images")


@_ext.on_load
def _register() -> None:
    """Attaches shapes for tracing and the derivative to the native ops."""
    ops = torch.ops.nsr

    def save(ctx, inputs, output):
        x, normal, *_, ctx.keep = inputs
        _, valid, jacobian_x, jacobian_normal = output
        ctx.save_for_backward(x, normal, jacobian_x, jacobian_normal)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(valid, jacobian_x, jacobian_normal)

    def backward(ctx, grad_ncc, *_):
        if grad_ncc is None:
            return (None,) * 13
        if not ctx.keep:
            raise RuntimeError("nsr::patch_ncc: its derivative needs what a call with keep=True keeps; got keep=False")
        grads = ops.patch_ncc_bwd(grad_ncc, *ctx.saved_tensors)
        needed = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad[:2], strict=True))
        return *needed, *(None,) * 11

    def second_order(ctx, *grads):
        raise NotImplementedError(
            "nsr::patch_ncc_bwd: second derivatives of patch_ncc are not implemented; "
            "set NSR_BACKEND=reference to compute them in plain PyTorch"
        )

    torch.library.register_autograd("nsr::patch_ncc", backward, setup_context=save)
    torch.library.register_autograd("nsr::patch_ncc_bwd", second_order)

    @torch.library.register_fake("nsr::patch_ncc")
    def _(x, normal, pixels, view, sources, *rest):
        n, k = sources.shape
        jacobian = (n if rest[-1] else 0, k, 3)
        valid = sources.new_empty((n, k), dtype=torch.bool)
        return x.new_empty(n, k), valid, x.new_empty(jacobian), x.new_empty(jacobian)

    @torch.library.register_fake("nsr::patch_ncc_bwd")
    def _(grad_ncc, x, normal, jacobian_x, jacobian_normal):
        return x.new_empty(x.shape), normal.new_empty(normal.shape)
