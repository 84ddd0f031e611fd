"""Appearance transfer: the surface of one run in the colours of another (Yariv et al. 2020, disentangling geometry and
appearance)."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

from nsr.training.run import Run
from nsr.training.settings import Config
from nsr.utils.errors import CheckpointError

# What must be the same in two runs, for the one's rendering network to understand the other's features and points.
ALIKE = (
    "model.implicit_network.feature_size",
    "model.implicit_network.encoder.type",
    "model.rendering_network.mode",
    "model.rendering_network.normalise_features",
    "model.rendering_network.point_encoder.type",
    "model.rendering_network.view_encoder.type",
    "exposure.type",
)
RADIUS = "model.ray_tracer.radius"


def transfer_appearance(geometry: Run, appearance: Run) -> Run:
    """The run `geometry` with the rendering network of `appearance`.

    The rendering network sees the points, normals and features of geometry's surface, in geometry's scene frame: it gives a
    point the colour that it has learned for that place in the unit sphere, for such a normal and such a feature. Nothing is
    aligned. The surface is geometry's own network. Raises CheckpointError where the two do not fit.
    """
    check_fit(geometry, appearance)
    return replace(geometry, model=geometry.model.with_appearance_of(appearance.model), exposure=None)


def check_fit(geometry: Run, appearance: Run) -> None:
    """Raises CheckpointError with the values of both for each setting in which they may not differ."""
    wrong = []
    for key in (*ALIKE, RADIUS):
        one, other = (_setting(run.config, key) for run in (geometry, appearance))
        if one != other if key != RADIUS else one > other:  # beyond its radius the rendering network has seen nothing
            need = ", which must reach as far as the first" if key == RADIUS else ""
            wrong.append(f"{key} is {_shown(one)} in the one and {_shown(other)} in the other{need}")
    if wrong:
        raise CheckpointError(
            f"the surface of {geometry.folder} and the colours of {appearance.folder} do not fit: {'; '.join(wrong)}; expected "
            "two runs of one configuration: train both with the same --conf"
        )


def _setting(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
