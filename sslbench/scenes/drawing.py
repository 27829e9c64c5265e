"""Draw one scene: background, clutter, objects that hide each other; with exact visible masks.

A class is an outline, which mostly wears its own texture and hues. Light, brightness, size, turn,
background and clutter are nuisance: they say nothing about the class.

Shape letters: H, W pixels of the scene; h, w of a window.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sslbench.scenes.canvas import NOBODY, Canvas, Place, Stencil
from sslbench.scenes.palette import any_colour, mix, object_colours, surface_colours
from sslbench.scenes.shapes import OUTLINES, Points
from sslbench.scenes.textures import TEXTURES, Array, clouds

SHAPE_NAMES, TEXTURE_NAMES = tuple(OUTLINES), tuple(TEXTURES)
# Common classes first: the commonest is four times as frequent as the rarest.
SHAPE_SHARES = np.array([1 / (rank + 2) ** 0.9 for rank in range(len(SHAPE_NAMES))])
SHAPE_SHARES /= SHAPE_SHARES.sum()
OWN_TEXTURE_SHARE = 0.9  # of the objects that wear their class's texture
THEME_SHARE = 0.85  # of a scene's objects that are of its main class: things come in flocks
SIZES = (
    (160, 120),
    (160, 128),
    (144, 108),
    (128, 96),
    (128, 128),
    (150, 100),
    (108, 144),
    (96, 128),
)
NUM_OBJECTS_SHARES = (0.34, 0.3, 0.2, 0.1, 0.06)  # of scenes with 1 to 5
SMALLEST, LARGEST = 0.12, 0.6  # diameter of an object over the side of the scene
MIN_VISIBLE = 0.3  # share of an object that later ones leave to see
MIN_PIXELS = 36
MAX_TRIES = 12
PATTERNED_SHARE = 0.15  # of surfaces with a pattern of the kind that objects wear
SPLIT_SHARE = 0.55  # of backgrounds with two surfaces


@dataclass(frozen=True)
class Instance:
    """One object of a finished scene.

    Args:
        shape: index into SHAPE_NAMES.
        texture: index into TEXTURE_NAMES.
        mask_HW: the pixels where it is seen.
        visible: share of the whole object that is seen.
        crowd: a heap of small objects of one class, not told apart.
    """

    shape: int
    texture: int
    mask_HW: npt.NDArray[np.bool_]
    visible: float
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """Pixels uint8 (H, W, 3) and the objects, the rearmost first."""

    pixels_HW3: npt.NDArray[np.uint8]
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class _Thing:
    """An object on the canvas: what it is, and how many pixels it would have alone."""

    shape: int
    texture: int
    full: int
    crowd: bool = False


def own_texture(shape: int) -> int:
    """Return the texture that a class mostly wears."""
    return shape % len(TEXTURE_NAMES)


def draw_scene(generator: np.random.Generator, *, crowd: bool = False) -> Scene:
    """Draw a scene; the same generator state gives the same pixels."""
    width, height = SIZES[generator.integers(len(SIZES))]
    canvas = Canvas(_background(height, width, generator))
    light = float(generator.uniform(0, 2 * np.pi))
    _add_clutter(canvas, int(generator.integers(2, 7)), generator)
    things = [_add_crowd(canvas, light, generator)] if crowd else []
    num_objects = 1 + int(generator.choice(len(NUM_OBJECTS_SHARES), p=NUM_OBJECTS_SHARES))
    theme = _draw_shape(generator)
    for _ in range(num_objects):
        shape = theme if generator.random() < THEME_SHARE else _draw_shape(generator)
        added = _add_object(canvas, shape, things, light, generator)
        things += [added] if added is not None else []
    pixels_HW3 = _expose(canvas.pixels_HW3, generator)
    masks = (canvas.owner_HW == owner for owner in range(len(things)))
    found = zip(things, masks, strict=True)
    return Scene(pixels_HW3, tuple(_instance(thing, mask_HW) for thing, mask_HW in found))


def _instance(thing: _Thing, mask_HW: npt.NDArray[np.bool_]) -> Instance:
    visible = float(mask_HW.sum()) / thing.full
    return Instance(thing.shape, thing.texture, mask_HW, visible, thing.crowd)


def _background(height: int, width: int, generator: np.random.Generator) -> Array:
    pixels_HW3 = _surface(height, width, generator)
    if generator.random() < SPLIT_SHARE:
        y_HW, x_HW = np.mgrid[:height, :width].astype(np.float32)
        slope = np.float32(np.tan(generator.normal(0, 0.35)))
        edge_HW = height * np.float32(generator.uniform(0.3, 0.7)) + slope * (x_HW - width / 2)
        below_HW = np.clip(y_HW - edge_HW + np.float32(0.5), 0, 1)
        pixels_HW3 += below_HW[..., None] * (_surface(height, width, generator) - pixels_HW3)
    return pixels_HW3


def _surface(height: int, width: int, generator: np.random.Generator) -> Array:
    """Lay clouds, or a faint pattern of the kind that objects wear."""
    colours = surface_colours(generator)
    pattern_HW = clouds(height, width, generator, cell=float(generator.uniform(12, 60)))
    if generator.random() < PATTERNED_SHARE:
        place = Place((width / 2, height / 2), float(generator.uniform(14, 40)), 0.0)
        window = (slice(0, height), slice(0, width))
        u_HW, v_HW = place.coordinates(window, float(generator.uniform(0, 2 * np.pi)))
        texture = TEXTURES[TEXTURE_NAMES[generator.integers(len(TEXTURE_NAMES))]]
        strength = np.float32(generator.uniform(0.2, 0.6))
        pattern_HW = pattern_HW + strength * (texture(u_HW, v_HW, generator) - pattern_HW)
    return mix(*colours, pattern_HW)


def _wobbled(shape: int, generator: np.random.Generator) -> Points:
    """Stretch and bend an outline a little: no two objects of a class are equal."""
    x, y = OUTLINES[SHAPE_NAMES[shape]]().T
    bend = generator.uniform(-0.12, 0.12, 2)
    stretch, shear = generator.uniform((0.85, -0.12), (1.15, 0.12))
    return np.stack(
        [x * stretch + shear * y + bend[0] * y**2, y / stretch + bend[1] * x**2], axis=1
    )


def _dress(
    canvas: Canvas,
    stencil: Stencil,
    place: Place,
    kind: tuple[int, int],
    light: float,
    generator: np.random.Generator,
) -> Array:
    """Colour the stencil's window: two colours by the texture, brighter towards the light."""
    shape, texture = kind
    u_hw, v_hw = place.coordinates(stencil.window, place.angle)
    pattern_hw = TEXTURES[TEXTURE_NAMES[texture]](u_hw, v_hw, generator)
    behind_3 = canvas.pixels_HW3[stencil.window].mean(axis=(0, 1))
    toward_hw, _ = place.coordinates(stencil.window, light)
    shading_hw = 1 + np.float32(0.22) * np.clip(toward_hw, -1, 1)
    return mix(*object_colours(shape, behind_3, generator), pattern_hw) * shading_hw[..., None]


def _add_object(
    canvas: Canvas, shape: int, things: list[_Thing], light: float, generator: np.random.Generator
) -> _Thing | None:
    """Add an object where it hides no other one too much; None if no such place was found."""
    height, width = canvas.size
    own = generator.random() < OWN_TEXTURE_SHARE
    texture = own_texture(shape) if own else int(generator.integers(len(TEXTURE_NAMES)))
    outline = _wobbled(shape, generator)
    share = SMALLEST + (LARGEST - SMALLEST) * np.sqrt(generator.random())
    radius = float(0.5 * np.sqrt(height * width) * share)
    for _ in range(MAX_TRIES):
        place = Place(_draw_center(canvas, 0.6 * radius, generator), radius, _draw_turn(generator))
        stencil = canvas.stencil(outline, place)
        if stencil is None or not _leaves_enough(canvas, stencil, things):
            continue
        length = 1 + 0.15 * radius
        canvas.shade(stencil, (round(-length * np.cos(light)), round(-length * np.sin(light))))
        colours_hw3 = _dress(canvas, stencil, place, (shape, texture), light, generator)
        canvas.paint(stencil, colours_hw3, len(things))
        return _Thing(shape, texture, stencil.full)
    return None


def _draw_shape(generator: np.random.Generator) -> int:
    return int(generator.choice(len(SHAPE_NAMES), p=SHAPE_SHARES))


def _draw_turn(generator: np.random.Generator) -> float:
    return float(generator.normal(0, 0.35))


def _draw_center(
    canvas: Canvas, margin: float, generator: np.random.Generator
) -> tuple[float, float]:
    height, width = canvas.size
    x, y = generator.uniform((margin, margin), (width - margin, height - margin))
    return float(x), float(y)


def _leaves_enough(canvas: Canvas, stencil: Stencil, things: list[_Thing]) -> bool:
    if (stencil.alpha_hw >= 0.5).sum() < max(MIN_PIXELS, 0.5 * stencil.full):
        return False
    seen, hidden = canvas.seen(len(things)), canvas.hidden_by(stencil, len(things))
    return all(
        there - lost >= max(MIN_PIXELS, MIN_VISIBLE * thing.full)
        for there, lost, thing in zip(seen, hidden, things, strict=True)
    )


def _add_crowd(canvas: Canvas, light: float, generator: np.random.Generator) -> _Thing:
    """Heap small objects of one class; they share the first owner."""
    height, width = canvas.size
    shape = _draw_shape(generator)
    texture = own_texture(shape)
    middle = generator.uniform((0.25 * width, 0.25 * height), (0.75 * width, 0.75 * height))
    for _ in range(int(generator.integers(6, 11))):
        radius = 0.5 * np.sqrt(height * width) * float(generator.uniform(0.09, 0.14))
        x, y = middle + generator.normal(0, 1.6 * radius, 2)
        place = Place((float(x), float(y)), radius, _draw_turn(generator))
        stencil = canvas.stencil(_wobbled(shape, generator), place)
        if stencil is not None:
            colours_hw3 = _dress(canvas, stencil, place, (shape, texture), light, generator)
            canvas.paint(stencil, colours_hw3, 0)
    return _Thing(shape, texture, int((canvas.owner_HW == 0).sum()), crowd=True)


def _add_clutter(canvas: Canvas, count: int, generator: np.random.Generator) -> None:
    """Scatter splinters that belong to no class."""
    height, width = canvas.size
    for _ in range(count):
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 7))))
        outline = np.stack([np.cos(angles), np.sin(angles) * generator.uniform(0.1, 1)], axis=1)
        x, y, radius, turn = generator.uniform((0, 0, 3, 0), (width, height, 0.12 * width, 6.28))
        stencil = canvas.stencil(outline, Place((float(x), float(y)), float(radius), float(turn)))
        if stencil is not None:
            canvas.paint(stencil, any_colour(generator), NOBODY)


def _expose(pixels_HW3: Array, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light the scene unevenly, add sensor noise, and round to bytes."""
    height, width, _ = pixels_HW3.shape
    y_HW, x_HW = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope_x, slope_y = generator.uniform(-0.25, 0.25, 2).astype(np.float32)
    gain, grain = generator.uniform((0.6, 0.004), (1.25, 0.025)).astype(np.float32)
    tint_3 = generator.uniform(0.9, 1.1, 3).astype(np.float32)
    light_HW3 = (gain * (1 + slope_x * x_HW + slope_y * y_HW))[..., None] * tint_3
    noise_HW3 = generator.standard_normal(pixels_HW3.shape, np.float32)
    exposed_HW3: Array = np.clip(pixels_HW3 * light_HW3 + grain * noise_HW3, 0, 1) * 255
    return exposed_HW3.round().astype(np.uint8)
