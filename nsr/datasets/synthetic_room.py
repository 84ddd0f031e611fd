"""A room around the built-in scenes, for work without masks: something to see behind the object, far outside its sphere."""

from __future__ import annotations

import numpy as np

RADIUS = 6.0  # scene units; the cameras stand inside, at about 3.2


class Room:
    """The inside of a ball about the origin, painted like the object but for its colour, and without shading."""

    def __init__(self, rng: np.random.Generator) -> None:
        count, longest, shortest = 96, 4.0, 0.2  # the shortest wave is about 3 pixels of a 400x300 view
        wavelength = longest * (shortest / longest) ** ((np.arange(count) + rng.uniform(0, 1, count)) / count)
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        self.waves = (2 * np.pi / wavelength * direction.T).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
        self.amplitudes = (0.5 * np.sqrt(2 / count) * (1 + 0.3 * rng.normal(size=(count, 3)))).astype(np.float32)
        self.base = np.array([0.40, 0.44, 0.47], dtype=np.float32)

    def colors(self, eye: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """[N, 3] in [0, 1] along unit directions [N, 3] from a point [3] inside the room."""
        along = directions @ eye
        distance = -along + np.sqrt(along**2 + RADIUS**2 - eye @ eye)
        points = (eye + distance[:, None] * directions).astype(np.float32)
        field = np.empty_like(points)
        for start in range(0, len(points), 8192):  # keeps the waves of a chunk in the cache
            part = slice(start, start + 8192)
            field[part] = np.cos(points[part] @ self.waves + self.phases) @ self.amplitudes
        return np.clip(self.base * (1 + 0.7 * np.tanh(field)), 0, 1)
