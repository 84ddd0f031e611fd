"""Encoders by name. The configuration names one (`encoder { type = hashgrid, hashgrid { levels = 12 } }`); this builds it."""

from __future__ import annotations

from nsr.config import Variant
from nsr.encoders.base import Encoder, EncoderConfig
from nsr.encoders.filter_bank import (
    FilterBankConfig,
    ModulatedFilterBankConfig,
    TcnnFilterBankConfig,
    TcnnModulatedFilterBankConfig,
)
from nsr.encoders.fourier import FourierConfig
from nsr.encoders.hash_grid import CudaHashGridConfig, HashGridConfig
from nsr.encoders.positional import PositionalConfig
from nsr.encoders.spherical_harmonics import SphericalHarmonicsConfig
from nsr.encoders.tiny_cuda_nn import TcnnHashGridConfig

POINT_ENCODERS: dict[str, type[EncoderConfig]] = {
    "vanilla": PositionalConfig,
    "fourier": FourierConfig,
    "hashgrid": HashGridConfig,
    "hashgrid_cuda": CudaHashGridConfig,
    "hashgrid_tcnn": TcnnHashGridConfig,
    "nffb": FilterBankConfig,
    "stylemod_nffb": ModulatedFilterBankConfig,
    "nffb_tcnn": TcnnFilterBankConfig,
    "stylemod_nffb_tcnn": TcnnModulatedFilterBankConfig,
}
# Everything that encodes a point encodes a unit direction too; spherical harmonics make sense on the sphere only.
VIEW_ENCODERS: dict[str, type[EncoderConfig]] = {**POINT_ENCODERS, "sh": SphericalHarmonicsConfig}


def build_encoder(choice: Variant) -> Encoder:
    """The encoder that a configuration block names."""
    return choice.options.build()
