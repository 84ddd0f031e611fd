"""DeepSDF: the decoder, its loss, and that an auto-decoder learns a family of balls and goes on where it stopped."""

import numpy as np
import pytest
import torch

from nsr.priors.deepsdf import AutoDecoder, CodedShape, DeepSdf, DeepSdfConfig, clamped_distance
from nsr.priors.sdf_samples import SdfSamples

SMALL = DeepSdfConfig(code_size=2, dims=(32, 32, 32), skip_in=(2,), steps=400, shapes=8, points=256, learning_rate=5e-3)


def ball_samples(radius: float, count: int, seed: int) -> SdfSamples:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    distance = radius + 0.1 * torch.randn(count, 1, generator=generator)
    points = direction * distance.clamp(0.0, 1.0)
    return SdfSamples(points, points.norm(dim=-1) - radius)


def balls(radii, count=2000) -> list[SdfSamples]:
    return [ball_samples(radius, count, seed) for seed, radius in enumerate(radii)]


def decoder(config=SMALL, seed=0) -> DeepSdf:
    return DeepSdf.build(config, seed)


def test_a_new_decoder_is_a_sphere_whatever_the_code():
    made = decoder(DeepSdfConfig())
    points = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    for code in (torch.zeros(1, 64), 0.01 * torch.randn(1, 64, generator=torch.Generator().manual_seed(1))):
        assert made(0.2 * points[None], code).max() < 0 < made(0.95 * points[None], code).min()


def test_codes_are_broadcast_as_if_every_point_had_its_own():
    made = decoder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    points, codes = torch.randn(3, 7, 3), torch.randn(3, 2)
    together = made(points, codes)
    for i in range(3):
        for j in range(7):
            torch.testing.assert_close(together[i, j], made(points[i : i + 1, j : j + 1], codes[i : i + 1])[0, 0])
    assert (together[0] - made(points[:1], codes[1:2])[0]).abs().max() > 1e-3  # the code matters


def test_the_gradient_reaches_points_and_code():
    made = decoder().double()
    points = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (points, codes))


def test_codes_of_a_family_are_standard_normal_among_those_it_was_trained_with():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 1, generator=generator) * torch.tensor([[3.0, 4.0]]) + torch.tensor([5.0, -2.0])
    codes += 1e-3 * torch.randn(200, 2, generator=generator)
    family = CodedShape(decoder(), codes, np.eye(4))
    assert family.code_size == 1  # across the line there is only noise
    points = torch.randn(5, 3, generator=generator) * 0.3
    mean = family.decoder(points[None], codes.mean(0)[None])[0]
    torch.testing.assert_close(family.distance(points, family.no_code()), mean)
    spread = (family.mean + torch.tensor([1.0]) @ family.basis - codes.mean(0)).norm()
    assert float(spread) == pytest.approx(float((codes - codes.mean(0)).norm(dim=1).square().sum() / 199) ** 0.5, rel=1e-3)
    own = torch.randn(5, 1, generator=generator)
    each = torch.stack([family.distance(points[i : i + 1], own[i])[0] for i in range(5)])
    torch.testing.assert_close(family.distance(points, own), each)
    assert CodedShape(decoder(), codes[:1], np.eye(4)).code_size == 0


def test_beyond_the_clamp_only_the_wrong_side_counts():
    sdf = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.02, 0.02]])
    predicted = torch.tensor([[0.9, 0.04, -0.2, 0.3, 0.05, -0.03]], requires_grad=True)
    loss = clamped_distance(predicted, sdf, 0.1)
    expected = [0.0, 0.06, 0.0, 0.4, 0.03, 0.05]
    assert float(loss.detach()) == pytest.approx(np.mean(expected))
    loss.backward()
    assert (predicted.grad[0] != 0).tolist() == [value > 0 for value in expected]


def test_a_family_of_balls_is_learned_and_its_codes_are_in_order():
    radii = [0.3, 0.4, 0.5, 0.6, 0.7, 0.45, 0.55, 0.35]
    trained = AutoDecoder(decoder(), balls(radii), torch.Generator().manual_seed(0))
    first = trained.step()["distance"]
    while not trained.finished:
        last = trained.step()["distance"]
    assert last < 0.25 * first
    direction = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(9)), dim=-1)
    with torch.no_grad():
        for radius, code in zip(radii, trained.codes, strict=True):
            assert trained.decoder(radius * direction[None], code[None]).abs().mean() < 0.02
        # Between two codes lies a ball between two balls.
        between = (trained.codes[0] + trained.codes[1]) / 2
        inside, outside = (trained.decoder(r * direction[None], between[None]).mean() for r in (0.3, 0.4))
    assert inside < 0 < outside


def test_training_goes_on_bit_for_bit():
    def begin() -> AutoDecoder:
        return AutoDecoder(decoder(), balls([0.3, 0.5, 0.6], 500), torch.Generator().manual_seed(3))

    whole, first = begin(), begin()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    state = first.state_dict()
    second = begin()
    second.load_state_dict(state)
    for _ in range(3):
        second.step()
    for a, b in zip(whole.decoder.parameters(), second.decoder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.codes, second.codes)
    other = AutoDecoder(decoder(), balls([0.3, 0.5], 500), torch.Generator())
    with pytest.raises(ValueError, match="codes"):
        other.load_state_dict(state)


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    AutoDecoder(decoder(seed=5), balls([0.4], 100), torch.Generator().manual_seed(0)).step()
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"code_size": 0}, "code_size"), ({"dims": ()}, "dims"), ({"skip_in": (3,)}, "skip_in"), ({"clamp": 0.0}, "clamp")],
)
def test_impossible_networks_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        DeepSdfConfig(**{"dims": (8, 8, 8), "skip_in": (1,), **changes})
