"""Colour models and the random walker against what they are by definition."""

import torch

from nsr.training.segmentation import BINS, LEAST_COUPLING, color_codes, color_log_odds, random_walker


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_the_bins_of_a_cube():
    colors = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.5 / BINS, 0.0]])
    assert color_codes(colors.view(1, 2, 2, 3)).flatten().tolist() == [0, BINS - 1, BINS**3 - 1, BINS]


def test_colors_tell_object_and_background_apart_where_they_differ():
    images = torch.zeros(2, 8, 8, 3)
    images[:, :, 4:] = 0.9  # right half bright: object; the lowest row grey: on either side
    images[:, 7] = 0.5
    right = torch.zeros(2, 8, 8)
    right[:, :, 4:] = 1.0
    odds = color_log_odds(color_codes(images), right, 1.0 - right)
    assert (odds[:, :7, 4:] > 2).all()
    assert (odds[:, :7, :4] < -2).all()
    assert odds[:, 7].abs().max() < 1e-5


def test_a_view_without_samples_borrows_the_colors_of_the_others():
    images = torch.zeros(2, 4, 4, 3)
    images[:, :, 2:] = 0.9
    of_object = torch.zeros(2, 4, 4)
    of_background = torch.zeros(2, 4, 4)
    of_object[0, :, 2:], of_background[0, :, :2] = 1.0, 1.0
    odds = color_log_odds(color_codes(images), of_object, of_background)
    torch.testing.assert_close(odds[1].sign(), odds[0].sign())
    assert odds[1].abs().min() > 1


def test_random_walker_solves_its_normal_equations():
    h, w = 6, 5
    image, prior, confidence = noise(h, w, 3), noise(h, w, seed=1), 0.05 + noise(h, w, seed=2)
    matrix = torch.diag(confidence.flatten())
    steps = torch.cat([(image[:, 1:] - image[:, :-1]).flatten(0, 1), (image[1:] - image[:-1]).flatten(0, 1)])
    across, down = (image[:, 1:] - image[:, :-1]).square().sum(-1).mean(), (image[1:] - image[:-1]).square().sum(-1).mean()
    weights = torch.exp(-steps.square().sum(-1) / (0.5 * (across + down))) + LEAST_COUPLING
    index = torch.arange(h * w).view(h, w)
    pairs = torch.cat(
        [torch.stack([index[:, :-1], index[:, 1:]], -1).view(-1, 2), torch.stack([index[:-1], index[1:]], -1).view(-1, 2)]
    )
    for (i, j), weight in zip(pairs.tolist(), weights, strict=True):
        edge = torch.zeros(h * w)
        edge[i], edge[j] = 1.0, -1.0
        matrix += weight * torch.outer(edge, edge)
    exact = torch.linalg.solve(matrix, (confidence * prior).flatten()).view(h, w)
    found = random_walker(image, prior, confidence, torch.full((h, w), 0.5), iterations=60)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


def test_random_walker_stops_at_an_edge():
    image = torch.zeros(20, 20, 3)
    image[:, 11:] = 1.0
    prior, confidence = torch.zeros(20, 20), torch.full((20, 20), 1e-4)
    prior[10, 2], confidence[10, 2], confidence[10, 17] = 1.0, 10.0, 10.0  # one pixel known on either side
    found = random_walker(image, prior, confidence, torch.full((20, 20), 0.5), iterations=200)
    assert (found[:, :11] > 0.5).all()
    assert (found[:, 11:] < 0.5).all()
