"""Maps of colours per photograph: what they compute, and that only differences between photographs are learned."""

import torch

from nsr.models.exposure import AffineExposure


def test_a_new_one_changes_nothing():
    exposure, rgb = AffineExposure(4), torch.rand(10, 3)
    assert torch.equal(exposure(rgb, torch.arange(10) % 4), rgb)
    assert exposure.penalty() == 0


def test_each_view_has_its_own_map():
    exposure, rgb, view = AffineExposure(3), torch.rand(50, 3), torch.arange(50) % 3
    with torch.no_grad():
        exposure.deviation.copy_(0.3 * torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)))
    maps = exposure.maps()
    for colour, out, index in zip(rgb, exposure(rgb, view), view.tolist(), strict=True):
        torch.testing.assert_close(out, maps[index, :, :3] @ colour + maps[index, :, 3])


def test_what_all_photographs_share_is_left_to_the_rendering_network():
    exposure = AffineExposure(5)
    target = (0.5 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0))).repeat(5, 1)
    optimiser = torch.optim.Adam(exposure.parameters(), lr=0.02)
    view = torch.arange(100) // 20
    gain = torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5])[view, None]
    for _ in range(500):
        optimiser.zero_grad()
        (exposure(target, view) - 0.7 * gain * target).square().mean().backward()  # all of them darker by 0.7
        optimiser.step()
    torch.testing.assert_close(exposure.maps().detach().mean(dim=0), torch.eye(3, 4), atol=1e-6, rtol=0)
    # Of the maps whose mean is the identity, those nearest to 0.7 gain: 1 + 0.7 (gain - 1).
    torch.testing.assert_close(exposure(target, view).detach(), (0.3 + 0.7 * gain) * target, atol=0.02, rtol=0)
