"""The names of the encoder experiments, as scripts and benchmarks take them after --exp, and their configurations."""

from __future__ import annotations

from nsr.utils.errors import ConfigError, UsageError
from nsr.utils.hocon import did_you_mean, find_conf

EXPERIMENTS = {
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


def experiment_conf(exp: str, variant: str) -> str:
    """The configuration's name below confs/: ("NFFB", "instant") is "encoders/nffb/instant".

    Raises UsageError for an unknown name or variant.
    """
    if exp not in EXPERIMENTS:
        raise UsageError(f"--exp {exp}: expected one of {', '.join(EXPERIMENTS)}.{did_you_mean(exp, EXPERIMENTS)}")
    conf = f"encoders/{EXPERIMENTS[exp]}/{variant}"
    try:
        find_conf(conf)
    except ConfigError as error:
        raise UsageError(f"--conf {variant}: no such configuration of {exp}: {error}") from error
    return conf
