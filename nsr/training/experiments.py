"""Experiments by the names that users give with --exp: the encoder behind each, and its configuration for a kind of data."""

from __future__ import annotations

from nsr.utils.errors import UsageError
from nsr.utils.hocon import did_you_mean

# name -> folder below confs/encoders
EXPERIMENTS: dict[str, str] = {
    "Posenc": "vanilla",
    "FourierNTK": "fourier",
    "HashGrid": "hashgrid",
    "HashGridCUDA": "hashgrid_cuda",
    "HashGridTCNN": "hashgrid_tcnn",
    "HashNerf": "hashnerf",
    "NFFB": "nffb",
    "StylemodNFFB": "stylemod_nffb",
    "NFFB_TCNN": "nffb_tcnn",
    "StylemodNFFB_TCNN": "stylemod_nffb_tcnn",
}

# Files of such a folder: the published recipe for DTU and for so many views of H3DS; the instant recipe with a small network of
# its own, and with the published ones (full).
VARIANTS: tuple[str, ...] = (
    "dtu_fixed_cameras",
    "dtu_trained_cameras",
    "h3ds_3_views",
    "h3ds_4_views",
    "h3ds_8_views",
    "h3ds_16_views",
    "h3ds_32_views",
    "instant",
    "full",
)


def experiment_conf(exp: str, variant: str) -> str:
    """The configuration's name below confs/: ("NFFB", "dtu_fixed_cameras") -> "encoders/nffb/dtu_fixed_cameras".

    Raises UsageError for an unknown experiment or variant, with the nearest valid name and all of them.
    """
    if exp not in EXPERIMENTS:
        raise UsageError(f"--exp {exp}: unknown experiment.{_nearest(exp, EXPERIMENTS)} Available: {', '.join(EXPERIMENTS)}")
    if variant not in VARIANTS:
        raise UsageError(
            f"--exp {exp}: no configuration for {variant!r}.{_nearest(variant, VARIANTS)} Available: {', '.join(VARIANTS)}"
        )
    return f"encoders/{EXPERIMENTS[exp]}/{variant}"


def variant_of(conf: str, trained_cameras: bool) -> str:
    """The variant that a word given as --conf means: "dtu" is one of two."""
    return ("dtu_trained_cameras" if trained_cameras else "dtu_fixed_cameras") if conf == "dtu" else conf


def experiment_folder(exp: str, variant: str, trained_cameras: bool, scene: str) -> str:
    """Under which name nsr failsafe keeps the runs of an experiment in a scene: NFFB_dtu_fixed_cameras_65.

    Runs with refined cameras are another experiment than those without, whatever their configuration.
    """
    suffix = "_trained_cameras" if trained_cameras and "trained_cameras" not in variant else ""
    return f"{exp}_{variant}{suffix}_{scene}"


def _nearest(name: str, known: dict[str, str] | tuple[str, ...]) -> str:
    """As did_you_mean, but nffb is near NFFB."""
    for other in known:
        if other.lower() == name.lower():
            return f" Did you mean {other!r}?"
    return did_you_mean(name, known)
