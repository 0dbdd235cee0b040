"""Things that stand or move in a street, as small solid models drawn in perspective.

Owns the camera, the shapes and their drawing: polygons, round limbs and balls in metres, projected through a pin-hole
camera and painted far to near on a supersampled canvas. Knows nothing of streets, light or time.

Local axes of a figure: x forward, y left, z up, in metres, the origin on the ground. World axes: X to the right,
Y up, Z away from the camera. A heading of 0 looks along +X, pi/2 along +Z, away from the camera.
"""

import math

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Floats = NDArray[np.float64]

_CIRCLE = [(math.cos(2 * math.pi * step / 14), math.sin(2 * math.pi * step / 14)) for step in range(14)]

NEAR_M = 1.0
"""Least depth that is projected; what is nearer lies on this plane."""


class Camera(msgspec.Struct, frozen=True, kw_only=True):
    """A pin-hole camera whose upright lines stay upright (its pitch is a shifted horizon)."""

    width: int
    """Of the frame, in pixels."""
    height: int
    """Of the frame, in pixels."""
    focal_px: float
    """Pixels per metre at one metre's depth."""
    centre_px: float
    """Column of the vanishing point."""
    horizon_px: float
    """Row of the horizon."""
    x_m: float
    """World X of the camera."""
    height_m: float
    """Above the ground."""

    def project(self, points: Floats) -> Floats:
        """Project world points, shape (n, 3) in metres, to pixels, shape (n, 2)."""
        depth = np.maximum(points[:, 2], NEAR_M)
        x = self.centre_px + self.focal_px * (points[:, 0] - self.x_m) / depth
        y = self.horizon_px + self.focal_px * (self.height_m - points[:, 1]) / depth
        return np.stack([x, y], axis=1)


class Part(msgspec.Struct, frozen=True):
    """One piece of a figure: a polygon of three and more points, a limb between two, a ball at one."""

    first: int
    """Number of its first point; the others follow."""
    count: int
    radius_m: float = 0.0
    """Of a limb or ball; of a ring half the width of its line; 0 for a filled polygon."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A thing of solid parts."""

    points: Floats
    """Shape (n, 3), local metres."""
    parts: tuple[Part, ...]
    colours: Floats
    """Of each part, 0..255, shape (p, 3)."""
    firsts: NDArray[np.intp]
    """First point of each part, shape (p,)."""
    counts: NDArray[np.intp]
    """Points of each part, shape (p,)."""
    normals: Floats
    """Outward direction of each part that is seen from one side only, zero for the others, shape (p, 3)."""
    both_sides: NDArray[np.bool_]
    """Which parts are seen from any side, shape (p,)."""
    layers: NDArray[np.intp]
    """Parts of a higher layer are painted over those of a lower one, within a layer far before near; shape (p,)."""
    reach_m: Floats
    """How far each point's part goes beyond the point, shape (n,)."""
    body: Colour
    """Main colour, which edges blend from."""
    length_m: float
    width_m: float
    height_m: float
    headlights: tuple[tuple[float, float, float], ...] = ()
    taillights: tuple[tuple[float, float, float], ...] = ()


class Sprite(msgspec.Struct, frozen=True, kw_only=True):
    """A drawn figure: the part of it inside the frame."""

    image: Image.Image
    """RGBA."""
    left: int
    top: int
    box: tuple[float, float, float, float]
    """Tight box of the whole figure, x0, y0, x1, y1 in pixels, also beyond the frame."""

    def solid(self) -> NDArray[np.bool_]:
        """Return the pixels of the image that belong to the figure, shape (height, width)."""
        return np.asarray(self.image.getchannel("A")) > 127


class Builder:
    """Collects points and parts of a figure."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float, float]] = []
        self._reach: list[float] = []
        self._parts: list[Part] = []
        self._colours: list[Colour] = []
        self._normals: list[tuple[float, float, float]] = []
        self._layers: list[int] = []

    def _add(
        self,
        points: list[tuple[float, float, float]],
        colour: Colour,
        radius_m: float,
        layer: int,
        outward: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        """Add a part."""
        self._parts.append(Part(len(self._points), len(points), radius_m))
        self._colours.append(colour)
        self._normals.append(outward)
        self._layers.append(layer)
        self._points.extend(points)
        self._reach.extend([radius_m] * len(points))

    def polygon(
        self,
        corners: list[tuple[float, float, float]],
        colour: Colour,
        *,
        outward: tuple[float, float, float] = (0.0, 0.0, 0.0),
        layer: int = 0,
    ) -> None:
        """Add a filled polygon; with an outward direction it is seen from that side only."""
        self._add(corners, colour, 0.0, layer, outward)

    def limb(
        self,
        start: tuple[float, float, float],
        end: tuple[float, float, float],
        radius_m: float,
        colour: Colour,
        *,
        layer: int = 0,
    ) -> None:
        """Add a line with round ends."""
        self._add([start, end], colour, radius_m, layer)

    def ball(self, centre: tuple[float, float, float], radius_m: float, colour: Colour, *, layer: int = 0) -> None:
        """Add a ball."""
        self._add([centre], colour, radius_m, layer)

    def ring(
        self,
        centre: tuple[float, float, float],
        radius_m: float,
        colour: Colour,
        *,
        half_width_m: float,
        layer: int = 0,
    ) -> None:
        """Add an upright ring in the plane y = const, such as a bicycle's tyre."""
        x, y, z = centre
        rim = [(x + radius_m * cos, y, z + radius_m * sin) for cos, sin in _CIRCLE]
        self._add(rim, colour, half_width_m, layer)

    def block(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        *,
        layer: int = 0,
    ) -> None:
        """Add a box; its faces are shaded by their direction."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        self.polygon(
            [(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)],
            shade(colour, 0.92),
            outward=(1, 0, 0),
            layer=layer,
        )
        self.polygon(
            [(x0, y0, z0), (x0, y1, z0), (x0, y1, z1), (x0, y0, z1)],
            shade(colour, 0.85),
            outward=(-1, 0, 0),
            layer=layer,
        )
        self.polygon(
            [(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)],
            shade(colour, 0.74),
            outward=(0, 1, 0),
            layer=layer,
        )
        self.polygon(
            [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)],
            shade(colour, 1.0),
            outward=(0, -1, 0),
            layer=layer,
        )
        self.polygon(
            [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
            shade(colour, 1.15),
            outward=(0, 0, 1),
            layer=layer,
        )

    def build(
        self,
        body: Colour,
        size_m: tuple[float, float, float],
        headlights: tuple[tuple[float, float, float], ...] = (),
        taillights: tuple[tuple[float, float, float], ...] = (),
    ) -> Figure:
        """Return the figure."""
        return Figure(
            points=np.array(self._points, np.float64),
            parts=tuple(self._parts),
            colours=np.array(self._colours, np.float64),
            firsts=np.array([part.first for part in self._parts]),
            counts=np.array([part.count for part in self._parts]),
            normals=np.array(self._normals, np.float64),
            both_sides=np.array([not any(normal) for normal in self._normals]),
            layers=np.array(self._layers),
            reach_m=np.array(self._reach),
            body=body,
            length_m=size_m[0],
            width_m=size_m[1],
            height_m=size_m[2],
            headlights=headlights,
            taillights=taillights,
        )


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour brighter or darker."""
    r, g, b = (min(255, int(value * factor)) for value in colour)
    return r, g, b


def vary(rng: Generator, colour: Colour, spread: int) -> Colour:
    """Return the colour, each channel moved by up to the spread."""
    r, g, b = (min(255, max(0, value + int(rng.integers(-spread, spread + 1)))) for value in colour)
    return r, g, b


def place(points: Floats, x_m: float, z_m: float, heading: float) -> Floats:
    """Turn local points, shape (n, 3), by the heading and move them to world X and Z."""
    cos, sin = math.cos(heading), math.sin(heading)
    world = np.empty_like(points)
    world[:, 0] = x_m + cos * points[:, 0] - sin * points[:, 1]
    world[:, 2] = z_m + sin * points[:, 0] + cos * points[:, 1]
    world[:, 1] = points[:, 2]
    return world


def draw(
    figure: Figure, camera: Camera, x_m: float, z_m: float, heading: float, *, haze: Colour, haze_share: float
) -> Sprite | None:
    """Draw a figure where it stands.

    Parameters
    ----------
    figure : Figure
        What to draw.
    camera : Camera
        The view.
    x_m, z_m : float
        World position of the figure's origin.
    heading : float
        Direction of the figure's x axis, in radians from world X towards Z.
    haze : Colour
        What distance fades into.
    haze_share : float
        How far the figure has faded, 0..1.

    Returns
    -------
    Sprite or None
        None where no pixel of the figure lies in the frame.
    """
    world = place(figure.points, x_m, z_m, heading)
    flat, scale = camera.project(world), camera.focal_px / np.maximum(world[:, 2], NEAR_M)
    reach = (figure.reach_m * scale)[:, None]
    x0, y0 = (flat - reach).min(axis=0).tolist()
    x1, y1 = (flat + reach).max(axis=0).tolist()
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(camera.width, math.ceil(x1)), min(camera.height, math.ceil(y1))
    if left >= right or top >= bottom:
        return None
    fine = 3 if max(right - left, bottom - top) < 64 else 2
    canvas = Image.new("RGBA", ((right - left) * fine, (bottom - top) * fine), (*mix(figure.body, haze, haze_share), 0))
    pen = ImageDraw.Draw(canvas)
    places = list(map(tuple, ((flat - (left, top)) * fine).tolist()))
    radii = (figure.reach_m[figure.firsts] * scale[figure.firsts] * fine).tolist()
    faded = figure.colours + (np.array(haze) - figure.colours) * haze_share
    colours = list(map(tuple, faded.astype(int).tolist()))
    for number in _order(figure, world, camera, heading):
        part, colour = figure.parts[number], colours[number]
        if not part.radius_m:
            pen.polygon(places[part.first : part.first + part.count], fill=colour)
            continue
        radius = radii[number]
        x, y = places[part.first]
        if part.count == 1:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            continue
        line = places[part.first : part.first + part.count]
        if part.count > 2:
            line.append(line[0])
        pen.line(line, fill=colour, width=max(1, round(2 * radius)))
        if part.count == 2 and radius > 1.6:
            for x, y in line:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return Sprite(image=canvas.reduce(fine), left=left, top=top, box=(x0, y0, x1, y1))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the first colour with a share of the second."""
    if share <= 0:
        return first
    r, g, b = (int(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return r, g, b


def _order(figure: Figure, world: Floats, camera: Camera, heading: float) -> list[int]:
    """Return the numbers of the parts that face the camera, in the order to paint them."""
    cos, sin = math.cos(heading), math.sin(heading)
    normals, corners = figure.normals, world[figure.firsts]
    facing = (
        (cos * normals[:, 0] - sin * normals[:, 1]) * (camera.x_m - corners[:, 0])
        + normals[:, 2] * (camera.height_m - corners[:, 1])
        - (sin * normals[:, 0] + cos * normals[:, 1]) * corners[:, 2]
    )
    depth = np.add.reduceat(world[:, 2], figure.firsts) / figure.counts
    order = np.lexsort((-depth, figure.layers))
    seen = (facing > 0) | figure.both_sides
    numbers: list[int] = order[seen[order]].tolist()
    return numbers
