"""Which pixels a training step looks at. Draws from its own generator, whose state is part of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsr.geometry.masks import dilate, is_object
from nsr.types import Scene


@dataclass(frozen=True)
class PixelBatch:
    """N pixels with what the photographs say about them.

    view: [N] position of the view in the scene; pixels: [N, 2] (u, v); rgb: [N, 3] in [0, 1]; mask: [N] in [0, 1].
    """

    view: Int[Tensor, " N"]
    pixels: Float[Tensor, "N 2"]
    rgb: Float[Tensor, "N 3"]
    mask: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.view)


class PixelSampler:
    """Draws random pixels of a scene, held as flat uint8 tensors on one device.

    Two ways to draw:
      `draw(n)` mixes pixels of all views: a share inside the masks, a share along their outlines (the pixels on both sides
      of them), a share anywhere, and the rest in the band around the silhouettes, where the mask loss has something to say.
      Shares that have no pixels go to pixels anywhere.
      `draw_from_image(n)` takes n pixels of one image and walks through the images in a new random order each epoch,
      as IDR does.
    left_out: pixels that are never drawn.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        seed: int = 0,
        inside_share: float = 0.7,
        outline_share: float = 0.0,
        uniform_share: float = 0.05,
        band_px: int = 25,
        device: torch.device | str | None = None,
        left_out: Bool[Tensor, "V H W"] | None = None,
    ):
        shares = inside_share, outline_share, uniform_share
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"PixelSampler: shares must be >= 0 and sum to <= 1, got {', '.join(map(str, shares))}")
        device = scene.images.device if device is None else torch.device(device)
        self.views, self.height, self.width = scene.masks.shape
        self._rgb = scene.images.reshape(-1, 3).to(device)
        self._mask = scene.masks.reshape(-1).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        # The order of images has a generator of its own on the CPU: randperm is then the same on every device.
        self._order_generator = torch.Generator().manual_seed(seed)
        self._order, self._position = torch.empty(0, dtype=torch.long), 0

        inside = is_object(scene.masks.to(device))
        # The image border is no outline: behind it the object may go on.
        # View by view: there is not that much memory to spare beside large photographs.
        outline = torch.stack([dilate(mask, 1) & dilate(~mask, 1) for mask in inside])
        band = torch.stack([dilate(mask, band_px) & ~mask for mask in inside])
        self._known: Tensor | None = None  # all pixels that may be drawn, where these are not simply all
        if left_out is not None and left_out.any():
            known = ~left_out.to(device)
            inside, outline, band, self._known = inside & known, outline & known, band & known, _indices(known)
            if not known.flatten(1).any(dim=1).all():
                raise ValueError("PixelSampler: left_out leaves no pixel of some view; expected one or more of each")
        self._pools = [_indices(inside), _indices(outline), _indices(band)]
        self._shares = [inside_share, outline_share, 1 - sum(shares)]

    def __len__(self) -> int:
        """Number of pixels in all views."""
        return len(self._mask)

    def draw(self, n: int) -> PixelBatch:
        """n pixels of all views, with replacement, drawn in the shares given to the constructor."""
        parts = []
        left = n
        for pool, share in zip(self._pools, self._shares, strict=True):
            count = min(round(n * share), left) if len(pool) else 0
            if count:
                parts.append(self._from(pool, count))
            left -= count
        if left or not parts:
            parts.append(self._anywhere(left))
        return self._batch(torch.cat(parts))

    def draw_inside(self, n: int) -> PixelBatch:
        """n pixels inside the masks of all views, with replacement; anywhere, where the masks are empty."""
        inside = self._pools[0]
        return self._batch(self._from(inside, n) if len(inside) else self._anywhere(n))

    def draw_from_image(self, n: int) -> PixelBatch:
        """n pixels anywhere in the next image of this epoch's random order (with replacement)."""
        if self._position >= len(self._order):
            self._order, self._position = torch.randperm(self.views, generator=self._order_generator), 0
        view = int(self._order[self._position])
        self._position += 1
        size = self.width * self.height
        return self._batch(self._anywhere(n, view * size, (view + 1) * size))

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that decides the next draws."""
        return {
            "generator": self.generator.get_state(),
            "order_generator": self._order_generator.get_state(),
            "order": self._order.clone(),
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Continue drawing exactly where `state_dict` was taken."""
        self.generator.set_state(state["generator"].cpu())
        self._order_generator.set_state(state["order_generator"].cpu())
        self._order, self._position = state["order"].cpu().clone(), int(state["position"])

    def _anywhere(self, count: int, begin: int = 0, end: int | None = None) -> Tensor:
        """Flat positions of `count` pixels in [begin, end), of those that may be drawn."""
        end = len(self) if end is None else end
        if self._known is None:
            return begin + self._integers(end - begin, count)
        if end - begin == len(self):  # all: no need to ask the device where they begin and end
            return self._known.index_select(0, self._integers(len(self._known), count)).long()
        first, last = torch.searchsorted(self._known, self._known.new_tensor([begin, end])).tolist()
        return self._known.index_select(0, first + self._integers(last - first, count)).long()

    def _from(self, pool: Tensor, count: int) -> Tensor:
        return pool.index_select(0, self._integers(len(pool), count)).long()

    def _integers(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator, device=self.generator.device)

    def _batch(self, index: Tensor) -> PixelBatch:
        size = self.width * self.height
        view = index.div(size, rounding_mode="floor")
        within = index - view * size
        v = within.div(self.width, rounding_mode="floor")
        pixels = torch.stack([within - v * self.width, v], dim=-1).float()
        # index_select is ten times faster here than indexing with [] is.
        rgb, mask = self._rgb.index_select(0, index), self._mask.index_select(0, index)
        return PixelBatch(view, pixels, rgb.float().div_(255), mask.float().div_(255))


def _indices(selected: Tensor) -> Tensor:
    """Flat positions of True, in 32 bits where they fit (a data set has tens of millions of pixels)."""
    index = selected.reshape(-1).nonzero()[:, 0]
    return index.int() if selected.numel() < 2**31 else index
