"""The configuration of a run: what confs/*.conf may say. Defaults are the published hyperparameters of IDR."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from nsr.config import check
from nsr.models.idr import ModelConfig
from nsr.models.losses import LossConfig
from nsr.priors.fitting import FitConfig

PATCHES = (3, 5, 7, 9, 11)  # sides of a patch that can be compared


@dataclass(frozen=True)
class DataConfig:
    """views: how many views of a scene to use where the command line does not choose (--views); 0 for all. Which they are says
    the data set, where it is laid out as H3DS (nsr.datasets.h3ds); elsewhere they are spread evenly."""

    views: int = 0

    def __post_init__(self) -> None:
        check(self, "views", self.views >= 0, "0 or more")


@dataclass(frozen=True)
class SamplingConfig:
    """Which rays and points a step looks at.

    mode: image = uniform pixels of one photograph per step, as IDR; scene = pixels of all photographs, inside_fraction of
    them inside the masks, outline_fraction in the pixels on both sides of their outlines, uniform_fraction anywhere, the rest
    in a band of band_fraction of the image width around the masks.
    volume_points: uniform points for the eikonal term, in the bounding ball's cube; neighbours: how many ray points get a
    neighbour, at a Gaussian offset of neighbour_sigma (scene units).
    color_rays: pixels inside the masks per step in which only the colours learn (see train.color_from).
    """

    mode: Literal["image", "scene"] = "image"
    rays: int = 2048
    inside_fraction: float = 0.7
    outline_fraction: float = 0.0
    uniform_fraction: float = 0.0
    band_fraction: float = 0.0625
    volume_points: int = 1024
    neighbours: int = 0
    neighbour_sigma: float = 0.01
    color_rays: int = 8192

    def __post_init__(self) -> None:
        for name in ("rays", "color_rays"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        fractions = [f"{kind}_fraction" for kind in ("inside", "outline", "uniform", "band")]
        for name in (*fractions, "volume_points", "neighbour_sigma"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        shares = [getattr(self, name) for name in fractions[:3]]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"the fractions inside, outline and uniform must not exceed 1 together, got {shares}")
        if not 0 <= self.neighbours <= self.rays:
            raise ValueError(f"neighbours must be in 0..rays = {self.rays}, got {self.neighbours}")


@dataclass(frozen=True)
class StartConfig:
    """From which surface training starts: the sphere of the geometric initialisation; the visual hull of the masks, carved on
    resolution^3 vertices and taught to the network for `steps` steps of `points` points; or the hull without what depths found
    by stereo say is free (nsr.training.stereo).

    learning_rate, table_learning_rate: of teaching, for networks and encoders' tables; both fall to a tenth.
    max_misses: how many masks may be wrong about one place. Where they contradict the others, they are neither carved with nor
    learned from (nsr.datasets.mask_disputes); openings that so few views look through are then taken for such mistakes.
    """

    type: Literal["sphere", "hull", "stereo"] = "sphere"
    resolution: int = 128
    steps: int = 150
    points: int = 8192
    learning_rate: float = 5e-3
    table_learning_rate: float = 1e-2
    max_misses: int = 0

    def __post_init__(self) -> None:
        for name, least in {"resolution": 8, "steps": 1, "points": 2, "max_misses": 0}.items():
            check(self, name, getattr(self, name) >= least, f"{least} or more")
        for name in ("learning_rate", "table_learning_rate"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0")


@dataclass(frozen=True)
class PhotometricConfig:
    """How patches of the photographs are compared across views (the term's weight: loss.photometric_weight).

    rays: surface rays per step that are compared; sources: how many other views each is compared with, min_angle degrees
    apart or more; best: how many of these count, the rest being taken for hidden; levels: of the image pyramid, 0 for as many
    as make the coarsest images about 50 pixels wide. Each level but the finest lasts for level_steps steps; it serves the rays
    whose mean NCC at full size does not exceed matched (1: all of them).
    patch: side of the square patch in pixels, at coarse levels. patches: sides of which the smallest with enough contrast
    serves at full size, and in the stereo start (nsr.datasets.pyramid.patch_side). occlusion: whether sources from which the
    surface is hidden are found by tracing. min_std: standard deviation of the grey values (of 1) under which a patch says
    nothing.
    """

    rays: int = 512
    sources: int = 6
    min_angle: float = 8.0
    best: int = 2
    levels: int = 0
    level_steps: int = 150
    patch: int = 7
    patches: tuple[int, ...] = (3, 5, 7, 9)
    contrast: float = 0.105
    occlusion: bool = True
    min_std: float = 0.002
    matched: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rays", "sources", "best", "level_steps"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("levels", "min_angle", "min_std", "contrast"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        check(self, "matched", -1 <= self.matched <= 1, "-1 to 1")
        check(self, "patch", self.patch in PATCHES, "3, 5, 7, 9 or 11")
        ascending = tuple(side for side in PATCHES if side in self.patches)
        check(self, "patches", self.patches == ascending != (), "one or more of 3, 5, 7, 9 and 11, ascending")


@dataclass(frozen=True)
class ExposureConfig:
    """Differences of exposure and white balance between the photographs (nsr.models.exposure).

    type: affine = one map of colours per photograph is learned with the surface, at learning_rate (which follows the schedule
    of the networks'); weight: of the maps' mean square difference from the identity.
    """

    type: Literal["none", "affine"] = "none"
    learning_rate: float = 5e-3
    weight: float = 0.01

    def __post_init__(self) -> None:
        check(self, "learning_rate", 0 < self.learning_rate < math.inf, "more than 0")
        check(self, "weight", 0 <= self.weight < math.inf, "0 or more")


@dataclass(frozen=True)
class PriorConfig:
    """What the prior that --prior names does to a run (nsr.training.prior_start); without one, nothing.

    start: weights = go on from the weights of a model that is built alike, in the scene's own frame, as BaseH3D-Net; surface =
    place its surface in the scene and teach it to the run's model, whatever that is; auto: see starts_from_weights.
    rendering, optimiser: whether a start from weights keeps those of the rendering network, and the moments of the optimisers.
    anchor_weight: of the term that holds the surface at the prior's, with anchor_points points per step; anchor_seen: how much
    of it is left where two photographs see the surface.
    """

    start: Literal["auto", "weights", "surface"] = "auto"
    rendering: Literal["keep", "reset"] = "keep"
    optimiser: Literal["keep", "reset"] = "reset"
    anchor_weight: float = 10.0
    anchor_points: int = 512
    anchor_seen: float = 0.05
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        for name in ("anchor_weight", "anchor_seen"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        check(self, "anchor_points", self.anchor_points >= 1, "1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn.

    A run ends after nepoch epochs (an epoch is as many steps as there are photographs) or after `budget` seconds, whichever
    comes first; 0 means no such bound. `progress` runs from 0 to 1 over the tighter of the two.
    Learning rate at any time: rate * lr_final^progress * lr_factor^(milestones passed). Milestones, here and in
    loss.alpha_milestones, count epochs or fractions of the stage. table_learning_rate: for the encoders' tables, which learn
    faster than networks; learning_rate_cam: for trainable cameras, times lr_final_cam^progress (1: constant, as in IDR).
    shape_rate: learning rates of the implicit network relative to the others, reached after a rise over warmup_steps steps. The
    colours that a new rendering network guesses say nothing about the shape, and Adam follows them as far as any others.
    geometry_full_at, appearance_full_at: from which fraction of the stage on the encoders of surface and colour show all.
    cuda_graph: on a GPU, record a step and replay it (nsr.training.step_graph) where the model allows it: fused networks, fixed
    cameras, pixels of all photographs.
    color_from: progress from which only the colours learn, on a shape that stays as it is: without the terms that shape needs a
    step takes many times the pixels. All schedules run to their ends before, in this "stage" of the shape (the
    whole run, where color_from is 1); the rates of the colours then begin anew.
    """

    nepoch: int = 2000
    budget: float = 0.0
    learning_rate: float = 1e-4
    learning_rate_cam: float = 1e-4
    table_learning_rate: float = 1e-2
    adam_betas: tuple[float, float] = (0.9, 0.999)
    lr_final: float = 1.0
    lr_final_cam: float = 1.0
    lr_factor: float = 0.5
    lr_milestones: tuple[float, ...] = (1000.0, 1500.0)
    milestone_unit: Literal["epoch", "progress"] = "epoch"
    geometry_full_at: float = 0.0
    appearance_full_at: float = 0.0
    color_from: float = 1.0
    shape_rate: float = 1.0
    warmup_steps: int = 0
    checkpoint_seconds: float = 60.0
    preview_steps: int = 0
    max_bad_steps: int = 20
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        for name in ("nepoch", "budget", "checkpoint_seconds", "preview_steps", "warmup_steps"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        rates = ("learning_rate", "learning_rate_cam", "table_learning_rate")
        for name in (*rates, "lr_final", "lr_final_cam", "lr_factor", "shape_rate"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in ("geometry_full_at", "appearance_full_at"):
            check(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        check(self, "color_from", 0 < self.color_from <= 1, "more than 0, up to 1")
        check(self, "adam_betas", all(0 <= beta < 1 for beta in self.adam_betas), "two numbers from 0 up to but not 1")
        check(self, "lr_milestones", all(at >= 0 for at in self.lr_milestones), "0 or more each")
        check(self, "max_bad_steps", self.max_bad_steps >= 1, "1 or more")
        if self.nepoch == 0 and self.budget == 0:
            raise ValueError("a run needs an end: set nepoch or budget")


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    start: StartConfig = field(default_factory=StartConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
