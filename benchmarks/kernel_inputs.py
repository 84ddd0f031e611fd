"""What the ops of kernel_cases.py are called with: networks of a configuration, random points, rays and photographs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nsr.config import bind, find_conf, load_tree
from nsr.geometry.poses import look_at
from nsr.models.idr import IDRModel
from nsr.ops.sdf_network import SdfNetwork
from nsr.training.settings import Config
from nsr.types import Cameras, Rays


@dataclass(frozen=True)
class Size:
    """How large the ops are called: overrides of confs/instant.conf, then numbers of points, rays, and what photographs."""

    overrides: tuple[str, ...] = ()
    points: int = 4096  # of a step: rays, volume and neighbours
    rays: int = 3072
    patch: int = 3  # pixels, the side that nsr.datasets.pyramid.patch_side chooses for the built-in scenes
    images: tuple[int, int, int] = (40, 300, 400)  # V, H, W
    hull: int = 128
    of_banks: tuple[str, ...] = ()  # overrides of the filter banks


def _both_grids(*options: str) -> tuple[str, ...]:
    grids = "model.implicit_network.encoder.hashgrid", "model.rendering_network.point_encoder.hashgrid"
    return tuple(f"{grid}.{option}" for grid in grids for option in options)


SIZES = {
    "instant": Size(),
    "large": Size(
        (
            *_both_grids("levels=16", "log2_table_size=19"),
            "model.implicit_network.dims=[128, 128]",
            "model.rendering_network.dims=[128, 128]",
            "photometric.rays=4096",
        ),
        points=16384,
        rays=8192,
        images=(49, 600, 800),
        hull=256,
    ),
    "gpu": Size(points=2**20, rays=2**20, images=(49, 600, 800), hull=256),  # of confs/instant.conf, what fills a GPU
    "quick": Size(
        (*_both_grids("levels=4", "log2_table_size=9", "start_levels=4"), "photometric.rays=16", "photometric.sources=2"),
        points=64,
        rays=32,
        images=(4, 24, 32),
        hull=12,
        of_banks=("levels=3", "log2_table_size=9", "start_levels=3", "width=8"),
    ),
}


class Inputs:
    """The networks of a model and random inputs for them, on a device."""

    def __init__(
        self, size: Size, config: Config, model: IDRModel, device: str, banks: dict[str, SdfNetwork] | None = None
    ) -> None:
        """banks: SDF networks with filter banks, by what they are called in the table."""
        self.size, self.config, self.device = size, config, device
        self.generator = torch.Generator().manual_seed(0)
        self.sdf = self._on_device(model.implicit_network.fused())
        self.banks = {name: self._on_device(network) for name, network in (banks or {}).items()}
        self.color = self._on_device(model.rendering_network.fused())
        self.points = 2 * self.rand(size.points, 3) - 1

    @classmethod
    def untrained(cls, size: Size, device: str) -> Inputs:
        config, model = _untrained("instant", size.overrides)
        banks = {}
        for kind, name in (("nffb", "with a filter bank"), ("stylemod_nffb", "with a modulated bank")):
            overrides = tuple(f"model.implicit_network.encoder.{kind}.{option}" for option in size.of_banks)
            _, with_bank = _untrained(f"encoders/{kind}/instant", overrides)
            banks[name] = with_bank.implicit_network.fused()
        return cls(size, config, model, device, banks)

    def _on_device(self, network):
        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(self.device).requires_grad_()

        network = network._replace(
            table=moved(network.table), layers=tuple(tuple(map(moved, layer)) for layer in network.layers)
        )
        if getattr(network, "bank", None) is None:
            return network
        of_bank = {name: moved(tensor) for name, tensor in network.bank.tensors().items()}
        return network._replace(bank=network.bank._replace(**of_bank))

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)

    def directions(self, n: int) -> Tensor:
        return torch.nn.functional.normalize(self.rand(n, 3) - 0.5, dim=1)

    def rays(self) -> Rays:
        """From a sphere of radius 3 to places in the ball of the scene."""
        origins = 3 * self.directions(self.size.rays)
        return Rays(origins, torch.nn.functional.normalize(self.directions(self.size.rays) * 0.9 - origins, dim=1))

    def cameras(self) -> Cameras:
        views, height, width = self.size.images
        eye = 3 * self.directions(views).cpu()
        intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]).repeat(views, 1, 1)
        pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        return Cameras(intrinsics, pose, width, height).to(self.device)


def _untrained(conf: str, overrides: tuple[str, ...]) -> tuple[Config, IDRModel]:
    tree, source = load_tree(find_conf(conf), list(overrides))
    config = bind(Config, tree, source)
    model = IDRModel.build(config.model, seed=0)
    model.set_progress(1.0, 1.0)
    return config, model
