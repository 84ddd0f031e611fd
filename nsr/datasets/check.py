"""What may be wrong with a scene, found before any time is spent on training, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nsr.datasets.camera_readings import AS_WRITTEN, find_reading
from nsr.datasets.consistency import HullConsistency
from nsr.datasets.mask_disputes import disputed_pixels
from nsr.geometry.cameras import pixel_rays, ray_sphere
from nsr.types import OBJECT_MASK, Scene

_NORMALISE = "remove the scale_mat keys from the camera file to have the scene normalised by its masks"
_DISAGREE = "masks and cameras do not fit together"
_LOOK = "look with `nsr data check --out PNG`"
_MAY_MISS = 2  # masks that may be wrong about one place
_UNMASKED = "silhouettes are estimated before training; look at them first with `nsr data masks`"
_SAMPLES = 2000  # mask pixels per view whose rays are held against the unit sphere


@dataclass(frozen=True)
class Finding:
    """error: training would fail or mislead; warning: look at it; info: worth knowing. advice: what to do about it."""

    level: Literal["error", "warning", "info"]
    message: str
    advice: str = ""


def check_scene(scene: Scene) -> list[Finding]:
    """All findings about a scene, errors first. A scene without errors and warnings is ready to train.

    Looks at what was guessed in reading it, counts and sizes, masks, intrinsics, where cameras look, whether the object
    lies in the unit sphere, duplicates, and whether a coarse visual hull fills the silhouettes of all views. Where nobody
    has made masks, only at images and cameras.
    """
    masks = _check_masks(scene) if scene.masked else [Finding("info", "no masks", _UNMASKED)]
    guesses = [Finding("warning", guess, "give files that belong together one name or number") for guess in scene.guesses]
    findings = [*guesses, *_check_counts(scene), *masks, *_check_intrinsics(scene), *_check_duplicates(scene)]
    inverted = any("inverted" in finding.message for finding in masks)
    if not scene.masked:
        findings += _check_aim(scene)
    elif not inverted:
        findings += _check_geometry(scene)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _check_geometry(scene: Scene) -> list[Finding]:
    """Cameras, masks and the unit sphere against each other.

    What is found about single views is reported only when the scene makes sense as a whole: otherwise these are mere
    consequences of one cause, which is looked for instead.
    """
    filled = (scene.masks >= OBJECT_MASK).flatten(1).any(1)
    if int(filled.sum()) < 2:
        return _check_aim(scene)
    usable = scene.select(filled.nonzero()[:, 0].tolist())
    away = _looks_away(usable)
    outside = torch.stack([_share_outside(usable, view) for view in range(len(usable))])
    if away.float().mean() > 0.25:
        return _explain_cameras(usable, f"{int(away.sum())} of {len(away)} cameras look away from the object")
    if outside.median() > 0.2:
        reading = find_reading(usable)
        if reading is not None and reading.cause == AS_WRITTEN:
            share = f"{float(outside.median()):.0%}"
            message = f"the object does not lie in the unit sphere: rays of {share} of the masks pass outside"
            return [Finding("error", message, _NORMALISE)]
        return _explain_cameras(usable)
    hull = _check_hull(usable)
    return hull if hull[0].level == "error" and hull[0].message.startswith(_DISAGREE) else _check_aim(scene) + hull


def _check_counts(scene: Scene) -> list[Finding]:
    count, (height, width) = len(scene), scene.masks.shape[1:]
    findings = [Finding("info", f"{count} views of {width}x{height} pixels")]
    if count < 3:
        message = f"only {count} view(s): the surface is not determined"
        findings.append(Finding("warning", message, "add views from around the object"))
    if min(width, height) < 64:
        findings.append(Finding("warning", f"images of {width}x{height} pixels are very small", "use larger images"))
    if count >= 2:
        directions = torch.nn.functional.normalize(scene.cameras.centers.float(), dim=-1)
        cosine = (directions @ directions.T).clamp(-1, 1).min()
        span = float(torch.rad2deg(torch.acos(cosine)))
        if span < 5:
            findings.append(Finding("warning", f"all views lie within {span:.1f} degrees", "add views from other directions"))
    return findings


# -------------------------------------------------------------------------------------------------------------- masks


def _check_masks(scene: Scene) -> list[Finding]:
    masks, names = scene.masks, scene.view_names
    share = (masks >= OBJECT_MASK).flatten(1).float().mean(1)
    soft = _is_soft(masks).flatten(1).float().mean(1) / share.clamp_min(1e-6)
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], dim=1) >= OBJECT_MASK
    border_share = border.float().mean(1)
    findings = []
    if (border_share > 0.8).float().mean() > 0.5 and not (share > 0.98).all():
        findings.append(
            Finding("error", "the masks look inverted: the image borders are object", "invert them: object white (255)")
        )
        return findings

    def report(level, chosen: Tensor, what: str, advice: str) -> None:
        if chosen.any():
            findings.append(Finding(level, f"{what}: {_names(names, chosen)}", advice))

    report("error", share == 0, "empty mask", "paint the object white, or remove the view")
    report("error", share > 0.98, "the mask covers the whole image", "segment the object again, or remove the view")
    tiny = (share > 0) & (share < 0.002)
    report("warning", tiny, "the object covers less than 0.2 % of the image", "crop the images (and move cx, cy)")
    blurred = (_soft_width(masks) > max(4.0, 0.02 * max(masks.shape[1:]))) & (share > 0)
    report("warning", blurred, "blurred mask", "export masks without feathering")
    median = share.median()
    odd = (share > 0) & ((share > 4 * median) | (share < median / 4)) & ~tiny & (share <= 0.98)
    report("warning", odd, "the mask is far larger or smaller than in the other views", _LOOK)
    report("info", border_share > 0.02, "the object is cut by the image border", "")
    if (soft > 0.005).any():
        findings.append(Finding("info", f"soft mask edges, {float(soft.mean()):.1%} of the object: used as they are"))
    return findings


def _is_soft(masks: Tensor) -> Tensor:
    return (masks > 12) & (masks < 243)


def _soft_width(masks: Tensor) -> Tensor:
    """[V] mean width in pixels of the soft edge: its area over the length of the silhouette."""
    hard = masks >= OBJECT_MASK
    crossings = (hard[:, 1:] ^ hard[:, :-1]).flatten(1).sum(1) + (hard[:, :, 1:] ^ hard[:, :, :-1]).flatten(1).sum(1)
    length = crossings * (torch.pi / 4)  # a line in any direction crosses the pixel grid 4 / pi times per pixel
    return _is_soft(masks).flatten(1).sum(1) / length.clamp_min(1)


# ------------------------------------------------------------------------------------------------------------ cameras


def _check_intrinsics(scene: Scene) -> list[Finding]:
    k, width, height = scene.cameras.intrinsics, scene.cameras.width, scene.cameras.height
    findings = []
    offset = torch.stack([k[:, 0, 2] / (width - 1), k[:, 1, 2] / (height - 1)], dim=-1)  # 0.5 is the image centre
    far = (offset - 0.5).abs().amax(-1) > 0.35
    if far.float().mean() > 0.5:
        x, y = (round(float(value), 1) for value in k[:, :2, 2].median(0).values)
        findings.append(
            Finding(
                "warning",
                f"the principal point ({x}, {y}) is far from the middle of the {width}x{height} images",
                "if the images were resized or cropped after calibration, scale fx, fy, cx, cy or shift cx, cy alike",
            )
        )
    ratio = k[:, 0, 0] / k[:, 1, 1]
    if ((ratio > 1.5) | (ratio < 1 / 1.5)).any():
        message = f"pixels are not square: fx / fy = {float(ratio[0]):.2f}"
        findings.append(Finding("warning", message, "check K and which side of the images is which"))
    return findings


def _looks_away(scene: Scene) -> Tensor:
    """[V] bool: the middle of the scene lies behind the camera, which is not itself in the unit sphere."""
    centers = scene.cameras.centers
    depth = -(centers * scene.cameras.camera_to_world[:, :3, 2]).sum(-1)
    return (depth < 0) & (centers.norm(dim=-1) > 1)


def _check_aim(scene: Scene) -> list[Finding]:
    """Single cameras that look away from the unit sphere or stand in it, and masks whose rays miss it."""
    names, findings = scene.view_names, []
    away = _looks_away(scene)
    if away.any():
        advice = "their poses are wrong: solve them again or remove these views"
        findings.append(Finding("error", f"cameras that look away from the object: {_names(names, away)}", advice))
    within = scene.cameras.centers.norm(dim=-1) <= 1
    if within.any():
        message = f"cameras inside the unit sphere, where only the object should be: {_names(names, within)}"
        findings.append(Finding("warning", message, _NORMALISE))
    outside = torch.stack([_share_outside(scene, view) for view in range(len(scene))])
    outside[away] = 0
    if scene.masked and outside.max() > 0.02:
        message = (
            "the object reaches out of the unit sphere, behind which base configurations reconstruct nothing and instant.conf "
            "nothing from 1.2 radii on: "
            f"up to {float(outside.max()):.0%} of a mask, in {_names(names, outside > 0.02)}"
        )
        findings.append(Finding("warning", message, f"if that is not intended, {_NORMALISE}"))
    return findings


def _share_outside(scene: Scene, view: int) -> Tensor:
    """Share of a view's mask whose rays miss the unit sphere."""
    v, u = (scene.masks[view] >= OBJECT_MASK).nonzero().unbind(-1)
    if len(u) == 0:
        return torch.zeros(())
    step = max(1, len(u) // _SAMPLES)
    pixels = torch.stack([u[::step], v[::step]], dim=-1).to(scene.cameras.intrinsics.dtype)
    rays = pixel_rays(scene.cameras, torch.full_like(u[::step], view), pixels)
    _, _, hits = ray_sphere(rays, 1.0)
    return (~hits).float().mean()


def _check_duplicates(scene: Scene) -> list[Finding]:
    findings, names = [], scene.view_names
    images: dict[bytes, int] = {}
    for view, image in enumerate(scene.images):
        first = images.setdefault(image[::7, ::7].cpu().numpy().tobytes(), view)
        if first != view:
            findings.append(
                Finding("warning", f"views {names[first]} and {names[view]} show the same image", "remove one of them")
            )
    poses = scene.cameras.camera_to_world.flatten(1)
    same = (torch.cdist(poses, poses) < 1e-6).triu(1).nonzero().tolist()
    for a, b in same[:5]:
        findings.append(Finding("warning", f"views {names[a]} and {names[b]} have the same camera", "solve the cameras again"))
    return findings


# --------------------------------------------------------------------------------------------------- the visual hull


def _check_hull(scene: Scene) -> list[Finding]:
    """Whether the silhouettes have a common volume that fills them, and which views spoil it."""
    consistency = HullConsistency(scene.masks, scene.cameras)
    everyone = torch.ones(len(scene), dtype=torch.bool, device=scene.masks.device)
    wrong, agree = consistency.wrong_views()
    if not agree:
        return _explain_cameras(scene)
    trusted = everyone.clone()
    trusted[wrong] = False
    hull = consistency.hull(trusted)
    overlap = consistency.overlap(hull)
    findings = [
        Finding(
            "info",
            f"the visual hull fills the silhouettes: overlap {float(overlap[trusted].mean()):.2f} on average, "
            f"{float(overlap[trusted].min()):.2f} at least",
        )
    ]
    for view in wrong:
        value = float(overlap[view])
        findings.append(
            Finding(
                "error" if value < 0.6 else "warning",
                f"view {scene.view_names[view]} does not fit the others: its mask and their visual hull overlap by {value:.2f}",
                f"its mask or its camera is wrong ({_LOOK}): mend it or remove the view",
            )
        )
    return findings + _check_disputes(scene.select(trusted.nonzero()[:, 0].tolist()))


def _check_disputes(scene: Scene) -> list[Finding]:
    """Parts of single masks that contradict the others, where there are enough others to tell."""
    if len(scene) < 3 * _MAY_MISS:
        return []
    findings = []
    size = (scene.masks >= OBJECT_MASK).flatten(1).sum(1)
    said = "leaves out a part that the others show", "shows something that the others do not"
    for what, places in zip(said, disputed_pixels(scene.masks, scene.cameras, _MAY_MISS), strict=True):
        for view in places.flatten(1).any(1).nonzero()[:, 0].tolist():
            v, u = places[view].nonzero().float().mean(0).round().int().tolist()
            share = float(places[view].sum() / size[view])
            findings.append(
                Finding(
                    "warning",
                    f"the mask of view {scene.view_names[view]} {what}: {share:.1%} of its object, around column {u}, row {v}",
                    f"mend the mask ({_LOOK}), or train with start.max_misses={_MAY_MISS}, which makes no use of such places",
                )
            )
    return findings


def _explain_cameras(scene: Scene, symptom: str = "the silhouettes have no common object") -> list[Finding]:
    """The silhouettes of a scene do not agree under its cameras: name the misreading under which they do."""
    message = f"{_DISAGREE}: {symptom}"
    reading = find_reading(scene)
    if reading is not None:
        return [Finding("error", f"{message}. They fit if {reading.cause}", reading.advice)]
    advice = (
        "no usual cause fits (inverted poses, OpenGL axes, reversed order, resized images); check that world_mat_i is "
        "K [R | t] of the i-th image in natural order, and that the masks show one object"
    )
    return [Finding("error", message, advice)]


def _names(names: tuple[str, ...], chosen: Tensor, most: int = 6) -> str:
    """The names of the chosen views, the first few of many."""
    picked = [name for name, take in zip(names, chosen.tolist(), strict=True) if take]
    if len(picked) == len(names) > most:
        return "all views"
    return ", ".join(picked[:most]) + (f" and {len(picked) - most} more" if len(picked) > most else "")
