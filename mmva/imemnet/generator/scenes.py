"""Scenes of the generated pictures: eight kinds, with the colours and density of the look.

The kind of scene does not depend on the VA point. Coordinates are in pixels, hues in [0, 1) of the colour circle.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
_WARM_HUE, _COLD_HUE = 0.05, 0.58
_SKIN_HUES = (0.04, 0.09)


@dataclass(frozen=True)
class Look:
    """The properties that depend on a picture's VA point; smile in [-1, 1], all others in [0, 1]."""

    brightness: float
    saturation: float
    warmth: float
    contrast: float
    complexity: float
    roundness: float
    smile: float


class Canvas:
    """An RGB image to draw on, with a palette between warm and cold; `rng` decides everything else."""

    def __init__(self, size: tuple[int, int], look: Look, rng: np.random.Generator) -> None:
        self.width, self.height = size
        self.image = Image.new("RGB", size)
        self.draw = ImageDraw.Draw(self.image)
        self.look, self.rng = look, rng

    def colour(self, value: float, saturation: float = 0.6, natural_hue: float | None = None) -> Colour:
        """A colour of this brightness; its hue is the palette's or, in half of the cases, the natural one."""
        warm = self.rng.random() < self.look.warmth
        hue = (_WARM_HUE if warm else _COLD_HUE) + self.rng.normal(0.0, 0.06)
        if natural_hue is not None and self.rng.random() < 0.5:
            hue = natural_hue + self.rng.normal(0.0, 0.02)
        shade = float(np.clip(value + self.rng.normal(0.0, 0.08), 0.05, 1.0))
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, shade)
        return round(255 * red), round(255 * green), round(255 * blue)

    def count(self, low: int, high: int) -> int:
        """Number of things to draw, between low (calm) and high (busy)."""
        return max(1, round(low + self.look.complexity * (high - low)))

    def at(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def backdrop(self, top: Colour, bottom: Colour) -> None:
        """A vertical gradient with soft clouds, over the whole picture."""
        ramp = np.linspace(0.0, 1.0, self.height)[:, None, None]
        column = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
        clouds = Image.fromarray(self.rng.normal(0.0, 22.0, (7, 9)).astype(np.float32))
        soft = np.asarray(clouds.resize((self.width, self.height), Image.Resampling.BICUBIC))[..., None]
        self.image.paste(Image.fromarray(np.clip(column + soft, 0, 255).astype(np.uint8)))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def thing(self, x: float, y: float, size: float, colour: Colour) -> None:
        """A round or a pointed thing, by the look's roundness."""
        if self.rng.random() < self.look.roundness:
            self.disc(x, y, size, colour)
            return
        angles = self.at(0, 2 * np.pi) + np.array([0.0, 2.3, 2.9, 5.0])
        self.draw.polygon(
            [(x + 1.5 * size * float(np.cos(angle)), y + 1.5 * size * float(np.sin(angle))) for angle in angles],
            fill=colour,
        )

    def ridge(self, level: float, roughness: float, colour: Colour) -> None:
        """Fill the area below an uneven horizon at `level` (fraction of the height)."""
        xs = np.linspace(0, self.width, 24)
        walk = np.cumsum(self.rng.normal(0.0, roughness * self.height / 12, 24))
        ys = level * self.height + walk - walk.mean()
        outline = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        self.draw.polygon([*outline, (self.width, self.height), (0, self.height)], fill=colour)


def hills(canvas: Canvas) -> None:
    """Ridges under a sky, with trees."""
    canvas.backdrop(canvas.colour(0.7, 0.5, 0.58), canvas.colour(0.9, 0.3, 0.12))
    canvas.disc(canvas.at(0, canvas.width), canvas.at(15, 90), canvas.at(10, 28), canvas.colour(1.0, 0.3, 0.14))
    for layer in range(3):
        level = 0.45 + 0.17 * layer
        canvas.ridge(level, 0.3 + 0.7 * canvas.look.complexity, canvas.colour(0.65 - 0.12 * layer, 0.6, 0.32))
        for _ in range(canvas.count(0, 14)):
            x, size = canvas.at(0, canvas.width), canvas.at(8, 26)
            y = (level + 0.08) * canvas.height
            if canvas.rng.random() < canvas.look.roundness:
                canvas.disc(x, y - size, 0.7 * size, canvas.colour(0.4, 0.7, 0.35))
            else:
                spire = [(x - size / 2, y), (x + size / 2, y), (x, y - 1.8 * size)]
                canvas.draw.polygon(spire, fill=canvas.colour(0.4, 0.7, 0.35))


def sea(canvas: Canvas) -> None:
    """Water with waves and boats."""
    canvas.backdrop(canvas.colour(0.8, 0.4, 0.56), canvas.colour(0.85, 0.4, 0.08))
    horizon = canvas.height * canvas.at(0.4, 0.6)
    canvas.draw.rectangle((0, horizon, canvas.width, canvas.height), fill=canvas.colour(0.55, 0.65, 0.55))
    for _ in range(canvas.count(5, 90)):
        x, y = canvas.at(-20, canvas.width), canvas.at(horizon, canvas.height)
        canvas.draw.arc((x, y, x + canvas.at(15, 60), y + 12), 190, 350, canvas.colour(0.8, 0.3, 0.55), 2)
    for _ in range(canvas.count(0, 5)):
        x, y, size = canvas.at(20, canvas.width - 20), horizon + canvas.at(0, 50), canvas.at(10, 26)
        canvas.draw.chord((x - size, y - size / 2, x + size, y + size / 2), 0, 180, canvas.colour(0.4))
        canvas.draw.polygon([(x, y), (x, y - 2 * size), (x + size, y - size / 3)], fill=canvas.colour(0.9, 0.3))


def town(canvas: Canvas) -> None:
    """A street of houses with windows."""
    canvas.backdrop(canvas.colour(0.7, 0.4, 0.6), canvas.colour(0.8, 0.3, 0.1))
    left = canvas.at(-30, 0)
    while left < canvas.width:
        width, top = canvas.at(30, 80), canvas.height * canvas.at(0.2, 0.65)
        wall = canvas.colour(0.55, 0.4, 0.07)
        canvas.draw.rectangle((left, top, left + width, canvas.height), fill=wall)
        if canvas.rng.random() < canvas.look.roundness:
            canvas.disc(left + width / 2, top, width / 2, wall)
        else:
            canvas.draw.polygon([(left, top), (left + width, top), (left + width / 2, top - 0.8 * width)], fill=wall)
        pane = 30 - 20 * canvas.look.complexity
        lit = canvas.colour(0.9, 0.5, 0.14)
        for y in np.arange(top + 6, canvas.height - 12, pane):
            for x in np.arange(left + 5, left + width - 8, pane):
                if canvas.rng.random() < 0.7:
                    canvas.draw.rectangle((x, y, x + pane * 0.5, y + pane * 0.6), fill=lit)
        left += width + canvas.at(-5, 8)


def still_life(canvas: Canvas) -> None:
    """Round things on a table."""
    canvas.backdrop(canvas.colour(0.6, 0.4), canvas.colour(0.5, 0.4))
    table = canvas.height * canvas.at(0.5, 0.7)
    canvas.draw.rectangle((0, table, canvas.width, canvas.height), fill=canvas.colour(0.5, 0.5, 0.08))
    for _ in range(canvas.count(2, 16)):
        radius = canvas.at(14, 46 - 16 * canvas.look.complexity)
        x, y = canvas.at(10, canvas.width - 10), table + canvas.at(-radius, 60)
        shadow = (x - radius, y + radius * 0.7, x + 1.3 * radius, y + radius * 1.1)
        canvas.draw.ellipse(shadow, fill=canvas.colour(0.25))
        canvas.thing(x, y, radius, canvas.colour(0.7, 0.75, canvas.at(0.0, 0.3)))
        canvas.disc(x - radius / 3, y - radius / 3, radius / 4, canvas.colour(0.95, 0.2))


def garden(canvas: Canvas) -> None:
    """Flowers in grass."""
    canvas.backdrop(canvas.colour(0.6, 0.6, 0.3), canvas.colour(0.45, 0.6, 0.33))
    for _ in range(canvas.count(10, 220)):
        x, y = canvas.at(0, canvas.width), canvas.at(0, canvas.height)
        canvas.draw.line((x, y, x + canvas.at(-6, 6), y - canvas.at(10, 30)), canvas.colour(0.5, 0.6, 0.33), 2)
    for _ in range(canvas.count(3, 26)):
        x, y, size = canvas.at(0, canvas.width), canvas.at(0, canvas.height), canvas.at(5, 15)
        petal = canvas.colour(0.8, 0.7, canvas.at(0.0, 1.0))
        for angle in np.linspace(0, 2 * np.pi, 6)[:-1]:
            canvas.thing(x + size * float(np.cos(angle)), y + size * float(np.sin(angle)), size * 0.6, petal)
        canvas.disc(x, y, size * 0.6, canvas.colour(0.9, 0.7, 0.14))


def crowd(canvas: Canvas) -> None:
    """Standing figures."""
    canvas.backdrop(canvas.colour(0.7, 0.3, 0.58), canvas.colour(0.6, 0.3, 0.1))
    canvas.ridge(0.6, 0.1, canvas.colour(0.5, 0.4, 0.1))
    for depth in np.linspace(0.55, 0.95, canvas.count(2, 22)):
        x, y, size = canvas.at(10, canvas.width - 10), float(depth) * canvas.height, 10 + 30 * (float(depth) - 0.4)
        coat = canvas.colour(0.55, 0.6)
        canvas.draw.rounded_rectangle((x - size / 2, y - 2.2 * size, x + size / 2, y), size / 3, fill=coat)
        canvas.disc(x, y - 2.7 * size, size * 0.45, canvas.colour(0.8, 0.4, canvas.at(*_SKIN_HUES)))


def portrait(canvas: Canvas) -> None:
    """A face whose mouth shows the smile."""
    canvas.backdrop(canvas.colour(0.6, 0.4), canvas.colour(0.5, 0.4))
    for _ in range(canvas.count(0, 30)):
        canvas.disc(canvas.at(0, canvas.width), canvas.at(0, canvas.height), canvas.at(4, 20), canvas.colour(0.6, 0.5))
    x, y = canvas.width * canvas.at(0.35, 0.65), canvas.height * canvas.at(0.4, 0.6)
    size = min(canvas.width, canvas.height) * canvas.at(0.22, 0.34)
    canvas.disc(x, y - size * 0.25, size * 1.08, canvas.colour(0.35, 0.5, 0.08))
    canvas.disc(x, y, size, canvas.colour(0.85, 0.4, canvas.at(*_SKIN_HUES)))
    for side in (-1, 1):
        canvas.disc(x + side * size * 0.38, y - size * 0.2, size * 0.1, (25, 20, 20))
    bend = size * 0.35 * canvas.look.smile
    mouth = [(x + t * size * 0.45, y + size * 0.5 - bend * t * t + bend / 2) for t in np.linspace(-1, 1, 13)]
    canvas.draw.line([(float(px), float(py)) for px, py in mouth], (120, 30, 40), max(3, round(size / 14)))


def abstract(canvas: Canvas) -> None:
    """Soft blobs and shards without a subject."""
    canvas.backdrop(canvas.colour(0.6, 0.5), canvas.colour(0.6, 0.5))
    for _ in range(canvas.count(4, 44)):
        canvas.disc(canvas.at(0, canvas.width), canvas.at(0, canvas.height), canvas.at(8, 50), canvas.colour(0.6, 0.6))


SCENES: tuple[Callable[[Canvas], None], ...] = (hills, sea, town, still_life, garden, crowd, portrait, abstract)
