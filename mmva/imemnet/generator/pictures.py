"""Pictures whose look follows their VA point by published relations.

- Brightness B and saturation S: V = .69 B + .22 S and A = -.31 B + .60 S in standard units (Valdez & Mehrabian 1994,
  "Effects of color on emotions", J. Exp. Psychol. General 123). Solved here for B and S.
- Warm hues (red, orange) are more arousing than cold ones (Wilms & Oberfeld 2018, "Color and emotion: effects of hue,
  saturation, and brightness", Psychol. Res. 82).
- Complexity and contrast raise arousal (Berlyne 1971, "Aesthetics and Psychobiology"; Machajdik & Hanbury 2010,
  "Affective image classification", ACM Multimedia: edge density and texture as features).
- People prefer round objects to pointed ones (Bar & Neta 2006, "Humans prefer curved visual objects", Psychol. Sci.
  17), and smiles to frowns.

The subject (hills, towns, bowls of fruit, faces, ...) does not depend on the VA point and is a confounder. Each
picture's feeling differs a little from its label (label noise), and each cue follows the feeling loosely.
"""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageStat

from mmva.imemnet.generator.labels import stream
from mmva.imemnet.generator.scenes import SCENES, Canvas, Look

JPEG_QUALITY = 88
_SIDE = (256, 320)
_FELT_STD = (0.045, 0.08)  # deviation of the drawn feeling from the label, per axis
_UNIT = 0.2  # one standard unit of the relations below, on the label's scale


def look_for(va: tuple[float, float], rng: np.random.Generator) -> Look:
    """A random look of a picture for a VA point in [0, 1]^2."""
    v, a = (np.asarray(va) + rng.normal(0.0, _FELT_STD) - 0.55) / _UNIT
    # The inverse of [[.69, .22], [-.31, .60]], whose determinant is .482.
    brightness, saturation = (0.60 * v - 0.22 * a) / 0.482, (0.31 * v + 0.69 * a) / 0.482

    def cue(centre: float, slope: float, value: float, noise: float) -> float:
        return float(np.clip(centre + slope * value + rng.normal(0.0, noise), 0.0, 1.0))

    return Look(
        brightness=cue(0.50, 0.18, brightness, 0.03),
        saturation=cue(0.45, 0.13, saturation, 0.06),
        warmth=cue(0.50, 0.22, 0.6 * a + 0.4 * v, 0.18),
        contrast=cue(0.50, 0.18, a, 0.10),
        complexity=cue(0.45, 0.22, a, 0.10),
        roundness=cue(0.50, 0.35, v, 0.12),
        smile=2 * cue(0.50, 0.30, v, 0.12) - 1,
    )


def render_picture(va: tuple[float, float], seed: int, index: int) -> bytes:
    """The JPEG file of picture `index`, sides of 256 to 320 px; a pure function of its arguments."""
    rng = stream(seed, "picture", index)
    look = look_for(va, rng)
    size = (int(rng.integers(_SIDE[0], _SIDE[1] + 1)), int(rng.integers(_SIDE[0], _SIDE[1] + 1)))
    canvas = Canvas(size, look, rng)
    SCENES[int(rng.integers(len(SCENES)))](canvas)
    image = _grain(canvas.image, look, rng)
    buffer = io.BytesIO()
    _grade(image, look).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _grain(image: Image.Image, look: Look, rng: np.random.Generator) -> Image.Image:
    """Texture over the whole picture: blur if calm, coarse grain if busy, and unrelated fine sensor noise."""
    if look.complexity < 0.5:
        image = image.filter(ImageFilter.BoxBlur(4.0 * (0.5 - look.complexity)))
    width, height = image.size
    coarse = rng.standard_normal((height // 3, width // 3), np.float32) * np.float32(14.0 * look.complexity)
    texture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    grain = rng.standard_normal((height, width), np.float32)
    grain *= np.float32(rng.uniform(1.0, 5.0))
    grain += texture
    noisy = np.asarray(image) + np.clip(np.rint(grain), -99, 99).astype(np.int16)[..., None]
    return Image.fromarray(np.clip(noisy, 0, 255, out=noisy).astype(np.uint8))


def _grade(image: Image.Image, look: Look) -> Image.Image:
    """Adjust saturation, contrast and mean brightness to the look."""
    small = image.reduce(4)
    saturation = ImageStat.Stat(small.convert("HSV").getchannel("S")).mean[0] / 255
    image = ImageEnhance.Color(image).enhance(float(np.clip(look.saturation / max(saturation, 0.05), 0.1, 2.5)))
    mean = float(np.clip(ImageStat.Stat(small.convert("L")).mean[0] / 255, 0.05, 0.95))
    target = 0.12 + 0.76 * look.brightness
    gamma = float(np.clip(np.log(target) / np.log(mean), 0.25, 4.0))
    levels = np.clip(mean + (np.arange(256) / 255 - mean) * (0.55 + 0.9 * look.contrast), 0.0, 1.0)
    curve: list[int] = (255 * levels**gamma).round().astype(int).tolist()
    return image.point(curve * 3)
