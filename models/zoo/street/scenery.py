"""A street without its traffic: ground, buildings, sky, and the furniture that stands about.

Owns the plan of a street and its picture under plain white light (its *backdrop*); light and weather come later, so one
backdrop serves a whole day. Distances are in metres; X = 0 is the middle of the road, which runs along Z.
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.zoo.street.figures import NEAR_M, Camera, Colour, Floats, mix, shade, vary
from models.zoo.street.furniture import Thing, furnish
from models.zoo.street.people import CLOTH, pick

LANE_M = 3.3
COARSE = 4
"""The light of a street is kept at this fraction of the frame's size; light has no sharp edges."""

HAZE: Colour = (196, 201, 208)
FAR_M = 260.0
CORNER_M = 2.5
"""From the crossing road to the houses beside it."""
_WALLS: tuple[Colour, ...] = (
    (178, 164, 146),
    (156, 110, 88),
    (196, 190, 180),
    (128, 130, 134),
    (204, 178, 138),
    (140, 92, 80),
    (164, 172, 168),
    (108, 104, 102),
)


class Street(msgspec.Struct, frozen=True, kw_only=True):
    """A street and its picture."""

    camera: Camera
    road_half_m: float
    lanes: tuple[tuple[float, int], ...]
    """X of each lane's middle and its direction: 1 away from the camera, -1 towards it."""
    parking_m: tuple[float, ...]
    """X of the strips where vehicles are parked."""
    pavement_m: float
    """Width of the pavement on each side."""
    junction_m: tuple[float, float] | None
    """From and to which Z a second road crosses."""
    walls: tuple[float, float, float] | None
    """Depth of the near corners of the junction, and the columns of pixels between which one sees past them."""
    haze_per_m: float
    things: tuple[Thing, ...]
    lamps: Floats
    """World positions of the street lamps' heads, shape (n, 3)."""
    backdrop: Image.Image
    """RGB, the street under white light, without its things."""
    sky: NDArray[np.float32]
    """Share of sky, 0..1, shape (height / COARSE, width / COARSE)."""
    lamplight: NDArray[np.float32]
    """What lamps and lit windows add to the light, 0..1, shape (height / COARSE, width / COARSE, 3)."""

    def haze_share(self, z_m: float) -> float:
        """Say how far a thing at that depth has faded into the haze, 0..1."""
        return 1.0 - math.exp(-self.haze_per_m * max(0.0, z_m))


def build(rng: Generator, size: tuple[int, int], *, fog: float = 0.0) -> Street:
    """Plan and paint a street.

    Parameters
    ----------
    rng : Generator
        Draws everything.
    size : tuple of int
        Width and height of the frame, in pixels.
    fog : float, default 0.0
        0 for clear air, 1 for a thick fog.

    Returns
    -------
    Street
        The same for the same draws and arguments.
    """
    width, height = size
    per_way = int(rng.choice([1, 1, 2]))
    parking = bool(rng.random() < 0.55)
    road_half = per_way * LANE_M + (2.3 if parking else 0.5)
    pavement = float(rng.uniform(2.4, 4.5))
    lanes = tuple((side * (lane + 0.5) * LANE_M, side) for side in (1, -1) for lane in range(per_way))
    camera = Camera(
        width=width,
        height=height,
        focal_px=float(rng.uniform(0.75, 1.25)) * max(width, height),
        centre_px=width * float(rng.uniform(0.3, 0.7)),
        horizon_px=height * float(rng.uniform(0.2, 0.42)),
        x_m=float(rng.uniform(-road_half - 2.0, road_half + 2.0)),
        height_m=float(rng.uniform(2.2, 6.5)),
    )
    near = float(rng.uniform(14.0, 40.0))
    junction = (near, near + float(rng.uniform(6.5, 9.0))) if rng.random() < 0.6 else None
    haze = 0.0015 + 0.045 * fog**1.5
    things, lamps = furnish(rng, road_half, pavement, junction, parking)
    sky = _paint_sky(rng, camera)
    upper, lit = _paint_buildings(rng, camera, sky, road_half + pavement, junction, haze)
    ground = _paint_ground(rng, camera, road_half, pavement, per_way, parking, junction, haze)
    first = height - ground.shape[0]
    picture = np.asarray(upper).copy()
    below = np.arange(first, height)[:, None] >= camera.horizon_px
    picture[first:][below[:, 0]] = np.where(
        (np.asarray(lit)[first:, :, None] != 0)[below[:, 0]], picture[first:][below[:, 0]], ground[below[:, 0]]
    )
    built = np.asarray(lit) != 0
    open_sky = ~built
    open_sky[max(0, math.ceil(camera.horizon_px)) :] = False
    windows = np.asarray(lit) == 128
    return Street(
        camera=camera,
        road_half_m=road_half,
        lanes=lanes,
        parking_m=(road_half - 1.15, -road_half + 1.15) if parking else (),
        pavement_m=pavement,
        junction_m=junction,
        walls=_walls(camera, road_half + pavement, junction),
        haze_per_m=haze,
        things=tuple(things),
        lamps=lamps,
        backdrop=Image.fromarray(picture),
        sky=_coarse(open_sky),
        lamplight=_lamplight(camera, lamps, _coarse(windows)),
    )


def _walls(camera: Camera, front_m: float, junction: tuple[float, float] | None) -> tuple[float, float, float] | None:
    """Say where the houses at the near corners hide the crossing road."""
    if junction is None:
        return None
    depth = junction[0] - CORNER_M
    corners = camera.project(np.array([[-front_m, 0.0, depth], [front_m, 0.0, depth]]))
    return depth, float(corners[0, 0]), float(corners[1, 0])


def _coarse(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Average a mask over cells of COARSE pixels."""
    reduced = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).reduce(COARSE), np.float32)
    return reduced / np.float32(255)


def _lamplight(camera: Camera, lamps: Floats, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add up the light below each lamp and from the lit windows."""
    rows, columns = windows.shape
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) * COARSE
    below = np.maximum(y - camera.horizon_px, 2.0)
    z = camera.focal_px * camera.height_m / below
    ground_x = (x - camera.centre_px) * z / camera.focal_px + camera.x_m
    light = np.zeros((rows, columns), np.float32)
    for lx, _, lz in lamps:
        light += 0.85 / (1.0 + ((ground_x - lx) ** 2 + (z - lz) ** 2) / 16.0) ** 1.5
    light *= np.clip((y - camera.horizon_px) / 20.0 + 0.5, 0.15, 1.0)
    warm = np.array([1.0, 0.8, 0.52], np.float32)
    glass = np.array([1.0, 0.86, 0.6], np.float32)
    return np.minimum(light[..., None] * warm + windows[..., None] * glass * 0.85, 1.0).astype(np.float32)


def _paint_sky(rng: Generator, camera: Camera) -> Image.Image:
    """Paint sky and clouds over the whole frame."""
    width, height = camera.width, camera.height
    depth = np.linspace(0.0, 1.0, height)[:, None, None] * (height / max(camera.horizon_px, 1.0))
    top, low = np.array([112.0, 160.0, 222.0]), np.array([206.0, 220.0, 234.0])
    sky = top + (low - top) * np.clip(depth, 0.0, 1.0)
    cover = float(rng.uniform(0.1, 1.1))
    cloud = np.zeros((height, width))
    for octave, share in ((4, 0.55), (9, 0.3), (20, 0.15)):
        patch = Image.fromarray(rng.integers(0, 256, (octave, octave * 2), dtype=np.uint8))
        cloud += share * np.asarray(patch.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 255
    cloud = np.clip((cloud - 0.62 + 0.4 * cover) * 3.0, 0.0, 1.0)[..., None]
    tone = 244.0 - 60.0 * max(0.0, cover - 0.7)
    return Image.fromarray((sky * (1 - cloud) + tone * cloud).clip(0, 255).astype(np.uint8))


def _paint_buildings(
    rng: Generator,
    camera: Camera,
    sky: Image.Image,
    front_m: float,
    junction: tuple[float, float] | None,
    haze_per_m: float,
) -> tuple[Image.Image, Image.Image]:
    """Paint skyline and houses over the sky; return the picture and marks: 0 open, 255 house, 128 lit window."""
    fine = 2
    size = (camera.width * fine, camera.height * fine)
    picture, marks = sky.resize(size), Image.new("L", size, 0)
    pens = ImageDraw.Draw(picture), ImageDraw.Draw(marks)

    def paint(corners: Floats, colour: Colour, depth_m: float, mark: int = 255) -> None:
        flat = [(float(x) * fine, float(y) * fine) for x, y in camera.project(corners)]
        pens[0].polygon(flat, fill=mix(colour, HAZE, 1.0 - math.exp(-(haze_per_m + 0.002) * depth_m)))
        pens[1].polygon(flat, fill=mark)

    for _ in range(int(rng.integers(6, 16))):
        x, w = float(rng.uniform(-160, 160)), float(rng.uniform(10, 40))
        h = float(rng.uniform(5, 34))
        colour = (86, 106, 80) if rng.random() < 0.4 else shade(pick(rng, _WALLS), 0.8)
        paint(np.array([[x, 0, FAR_M], [x + w, 0, FAR_M], [x + w, h, FAR_M], [x, h, FAR_M]]), colour, FAR_M)
    houses: list[tuple[float, float, int]] = []
    for side in (-1, 1):
        z = float(rng.uniform(0.5, 6.0))
        while z < 170:
            length = float(rng.uniform(8, 22))
            if junction is not None and z < junction[1] + CORNER_M and z + length > junction[0] - CORNER_M:
                if junction[0] - CORNER_M - z > 4:
                    houses.append((z, junction[0] - CORNER_M, side))
                z = junction[1] + CORNER_M
                continue
            houses.append((z, z + length, side))
            z += length + (float(rng.uniform(2, 10)) if rng.random() < 0.25 else 0.0)
    for near, far, side in sorted(houses, reverse=True):
        corner = junction is not None and abs(far + CORNER_M - junction[0]) < 0.1
        if not corner and rng.random() < 0.12:
            x, hedge = side * front_m, vary(rng, (70, 100, 58), 18)
            start = max(near, NEAR_M)
            paint(np.array([[x, 0, start], [x, 0, far], [x, 2.0, far], [x, 2.0, start]]), hedge, start)
            continue
        setback = float(rng.uniform(0, 5)) if not corner and rng.random() < 0.3 else 0.0
        _paint_house(rng, camera, paint, max(near, NEAR_M), far, side, front_m + setback)
    return picture.reduce(fine), marks.resize((camera.width, camera.height), Image.Resampling.NEAREST)


def _paint_house(
    rng: Generator,
    camera: Camera,
    paint: Callable[..., None],
    near: float,
    far: float,
    side: int,
    front_m: float,
) -> None:
    """Paint one house: its gable towards the camera, then its front along the street."""
    floors = int(rng.integers(1, 8))
    storey = float(rng.uniform(2.9, 3.6))
    top = floors * storey + float(rng.uniform(0.4, 1.6))
    wall = pick(rng, _WALLS, 20)
    x, back = side * front_m, side * (front_m + 14)
    paint(np.array([[x, 0, near], [back, 0, near], [back, top, near], [x, top, near]]), shade(wall, 0.8), near)
    paint(
        np.array([[x, 0, near], [x, 0, far], [x, top, far], [x, top, near]]),
        shade(wall, 1.0 if side < 0 else 0.88),
        near,
    )
    paint(np.array([[x, top - 0.4, near], [x, top - 0.4, far], [x, top, far], [x, top, near]]), shade(wall, 0.7), near)
    pitch = float(rng.uniform(2.2, 3.6))
    glass, shop = vary(rng, (70, 84, 98), 14), rng.random() < 0.5
    count = max(1, int((far - near) / pitch))
    for floor in range(floors):
        z0 = near + 0.6 + pitch * np.arange(count)
        if shop and floor == 0:
            sign = pick(rng, CLOTH, 30)
            paint(np.array([[x, 2.5, near], [x, 2.5, far], [x, 3.0, far], [x, 3.0, near]]), sign, near)
        low = floor * storey + (0.4 if shop and floor == 0 else 1.0)
        high = floor * storey + 2.4
        for z in z0:
            if camera.focal_px * 1.4 / z * abs(front_m - abs(camera.x_m)) / z < 1.2:
                continue
            lit = rng.random() < (0.75 if shop and floor == 0 else 0.35)
            corners = np.array([[x, low, z], [x, low, z + 0.58 * pitch], [x, high, z + 0.58 * pitch], [x, high, z]])
            # Windows that light up at night are pale by day: curtains and the sky's reflection.
            paint(corners, vary(rng, (176, 176, 168) if lit else glass, 12), float(z), 128 if lit else 255)
        if camera.focal_px / near < 10:
            continue
        for step in range(3):
            gx = side * (front_m + 1.6 + 4.2 * step)
            if near > 4:
                pane = np.array(
                    [[gx, low, near], [gx + side * 1.6, low, near], [gx + side * 1.6, high, near], [gx, high, near]]
                )
                paint(pane, shade(glass, 0.9), near)


def _paint_ground(
    rng: Generator,
    camera: Camera,
    road_half: float,
    pavement: float,
    per_way: int,
    parking: bool,
    junction: tuple[float, float] | None,
    haze_per_m: float,
) -> NDArray[np.uint8]:
    """Paint the ground below the horizon, shape (rows, width, 3)."""
    first = max(0, math.floor(camera.horizon_px))
    rows = np.arange(first, camera.height, dtype=np.float32)[:, None] + 0.5
    z = np.minimum(camera.focal_px * camera.height_m / np.maximum(rows - camera.horizon_px, 0.3), FAR_M)
    x = (np.arange(camera.width, dtype=np.float32)[None] + 0.5 - camera.centre_px) * (z / camera.focal_px) + camera.x_m
    pixel_m = z / camera.focal_px
    pixel_z = z * z / (camera.focal_px * camera.height_m)

    def band(value: NDArray[np.float32], middle: float, half: float, pixel: NDArray[np.float32]) -> NDArray[np.float32]:
        cover: NDArray[np.float32] = np.clip((half - np.abs(value - middle)) / pixel + 0.5, 0.0, 1.0)
        return cover

    road = band(x, 0.0, road_half, pixel_m)
    crossing = band(z, sum(junction) / 2, (junction[1] - junction[0]) / 2, pixel_z) if junction else np.zeros_like(z)
    asphalt = np.maximum(road, crossing)
    grain = rng.integers(0, 256, (128, 128), dtype=np.uint8).astype(np.float32) / 255 - 0.5
    patches = np.asarray(Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).resize((128, 128)), np.float32)
    texture = grain[(x * 7).astype(np.int32) & 127, (z * 5 + 0 * x).astype(np.int32) & 127] * np.exp(-z / 18) * 26
    texture += (patches[(x * 4).astype(np.int32) & 127, (z * 2 + 0 * x).astype(np.int32) & 127] / 255 - 0.5) * 16
    tile = np.maximum(band(np.abs(x) % 1.0, 0.5, 0.025, pixel_m), band(z % 1.0, 0.5, 0.025, pixel_z)) * np.exp(-z / 15)
    tone = float(rng.uniform(70, 118))
    slab = np.array(vary(rng, (158, 152, 146), 16), np.float32)
    beyond = np.array(vary(rng, (104, 122, 78) if rng.random() < 0.4 else (142, 138, 132), 14), np.float32)
    outside = 1.0 - band(x, 0.0, road_half + pavement, pixel_m)
    ground = slab * (1 - 0.16 * tile[..., None]) * (1 - outside[..., None]) + beyond * outside[..., None]
    ground = ground * (1 - asphalt[..., None]) + np.array([tone, tone, tone + 4], np.float32) * asphalt[..., None]
    kerb = np.maximum(band(x, road_half, 0.12, pixel_m), band(x, -road_half, 0.12, pixel_m)) * (1 - crossing)
    ground = ground * (1 - 0.5 * kerb[..., None]) + 200 * 0.5 * kerb[..., None]
    paint = band(x, 0.0, 0.07, pixel_m)
    if rng.random() < 0.6:
        paint = paint * band(z % 9.0, 3.0, 1.8, pixel_z)
    for lane in range(1, per_way):
        for side in (-1, 1):
            paint = np.maximum(paint, band(x, side * lane * LANE_M, 0.06, pixel_m) * band(z % 9.0, 3.0, 1.5, pixel_z))
    if parking:
        for side in (-1, 1):
            paint = np.maximum(
                paint, band(x, side * (road_half - 2.25), 0.05, pixel_m) * band(z % 6.0, 3.0, 2.6, pixel_z)
            )
    paint = paint * (1 - crossing)
    for zebra in [junction[0] - 2.6, junction[1] + 2.6] if junction else [float(rng.uniform(12, 45))]:
        paint = np.maximum(paint, band(z, zebra, 1.5, pixel_z) * band(x % 1.0, 0.5, 0.26, pixel_m) * road)
    paint = (paint * float(rng.uniform(0.45, 0.95)))[..., None]
    ground = ground * (1 - paint) + 226 * paint + texture[..., None]
    if rng.random() < 0.5:
        edge, sunny = float(rng.uniform(0.0, road_half)), float(rng.choice([-1, 1]))
        shadow = np.clip((x * sunny - edge) / 0.8 + 0.5, 0.0, 1.0)
        ground *= (1.0 - 0.32 * shadow)[..., None]
    fade = (1.0 - np.exp(-(haze_per_m + 0.002) * z))[..., None]
    ground = ground * (1 - fade) + np.array(HAZE, np.float32) * fade
    painted: NDArray[np.uint8] = ground.clip(0, 255).astype(np.uint8)
    return painted
