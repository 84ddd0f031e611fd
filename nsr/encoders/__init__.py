"""Encoders of points and view directions: one file each, chosen by name from the registry."""

from nsr.encoders.base import Encoder
from nsr.encoders.registry import POINT_ENCODERS, VIEW_ENCODERS, build_encoder

__all__ = ["POINT_ENCODERS", "VIEW_ENCODERS", "Encoder", "build_encoder"]
