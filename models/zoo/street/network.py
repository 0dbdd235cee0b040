"""The detector's network and its loss. Needs torch, which only training does.

A plain convolutional pyramid with one anchor-free head shared by three strides. Its output is decoded inside the graph
to the common YOLO layout (1, 4 + classes, n): cx, cy, w, h in input pixels, then scores.
"""

# torch is no dependency of the project, so for mypy all that comes from it is untyped.
# mypy: disable-error-code="misc, no-any-return, no-untyped-call, import-not-found, unused-ignore, import-untyped"

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
CLASSES = 3
PRIOR = 0.01
"""Score that an untrained head gives, so that the many empty places do not drown the first steps (Lin et al.,
"Focal Loss for Dense Object Detection", ICCV 2017, section 3.3)."""

CANDIDATES = 10
ALIGN_SCORE, ALIGN_IOU = 0.5, 6.0
"""Exponents of the alignment of score and overlap (Feng et al., "TOOD", ICCV 2021, section 3.2; the exponents are
those of YOLOv8)."""

BOX_WEIGHT = 10.0


class Width(msgspec.Struct, frozen=True):
    """Size of a network."""

    stages: tuple[int, int, int, int, int]
    """Channels at strides 2, 4, 8, 16 and 32."""
    depth: tuple[int, int, int, int]
    """Residual units at strides 4, 8, 16 and 32; 0 leaves the whole block out."""
    neck: int
    head: int
    """3x3 layers of the head."""


LARGE = Width((16, 32, 64, 96, 128), (1, 2, 2, 1), 64, 1)
SMALL = Width((16, 32, 48, 64, 96), (0, 1, 1, 1), 48, 1)


class Conv(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
            nn.ReLU(inplace=True),
        )


class Unit(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(channels, channels), Conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the body's correction."""
        return x + self.body(x)


class Block(nn.Module):
    """Cross-stage block: half of the channels pass through residual units, all their results are joined."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left, self.right = Conv(inputs, half, 1), Conv(inputs, half, 1)
        self.units = nn.ModuleList(Unit(half) for _ in range(depth))
        self.join = Conv(half * (2 + depth), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined channels."""
        parts = [self.left(x), self.right(x)]
        for unit in self.units:
            parts.append(unit(parts[-1]))
        return self.join(torch.cat(parts, 1))


class Detector(nn.Module):
    """The whole network, from pictures 0..1 to raw predictions of shape (batch, n, 4 + classes)."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        c = width.stages
        self.stem = Conv(3, c[0], 3, 2)
        stages = []
        for inputs, outputs, depth in zip(c[:-1], c[1:], width.depth, strict=True):
            down = Conv(inputs, outputs, 3, 2)
            stages.append(nn.Sequential(down, Block(outputs, outputs, depth)) if depth else down)
        self.stages = nn.ModuleList(stages)
        n = width.neck
        self.top = Conv(c[4], n, 1)
        self.middle = Block(n + c[3], n, 1)
        self.low = Block(n + c[2], n, 1)
        self.head = nn.Sequential(*(Conv(n, n) for _ in range(width.head)))
        self.boxes, self.scores = nn.Conv2d(n, 4, 1), nn.Conv2d(n, CLASSES, 1)
        nn.init.constant_(self.scores.bias, float(torch.logit(torch.tensor(PRIOR))))
        nn.init.zeros_(self.boxes.weight)
        nn.init.constant_(self.boxes.bias, 0.5)
        self.decoded = False

    def forward(self, images: Tensor) -> Tensor:
        """Return raw predictions, or with ``decoded`` set the YOLO layout (batch, 4 + classes, n)."""
        x = self.stages[0](self.stem(images))
        low = self.stages[1](x)
        middle = self.stages[2](low)
        top = self.top(self.stages[3](middle))
        middle = self.middle(torch.cat([functional.interpolate(top, scale_factor=2.0), middle], 1))
        low = self.low(torch.cat([functional.interpolate(middle, scale_factor=2.0), low], 1))
        raw = []
        for level in (low, middle, top):
            shared = self.head(level)
            # Training runs in bfloat16, whose steps of 1/128 are too coarse for the sizes of boxes.
            with torch.autocast("cpu", enabled=False):
                raw.append(torch.cat([self.boxes(shared.float()), self.scores(shared.float())], 1).flatten(2))
        joined = torch.cat(raw, 2)
        if not self.decoded:
            return joined.transpose(1, 2)
        places, strides = grid(images.shape[2], images.shape[3])
        centre = joined[:, :2] * strides + places.T
        size = torch.exp(joined[:, 2:4]) * strides
        return torch.cat([centre, size, torch.sigmoid(joined[:, 4:])], 1)


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the centres of all cells, shape (n, 2) in pixels as x, y, and their strides, shape (n,)."""
    places, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        places.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((x.numel(),), float(stride)))
    return torch.cat(places), torch.cat(strides)


def decode(raw: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Return corner boxes in pixels, shape (batch, n, 4), of raw predictions."""
    centre = raw[..., :2] * strides[:, None] + places
    half = torch.exp(raw[..., 2:4].clamp(max=5.0)) * strides[:, None] / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap(a: Tensor, b: Tensor, *, complete: bool = False) -> Tensor:
    """Return the intersection over union of corner boxes, or the complete one (Zheng et al., AAAI 2020, CIoU)."""
    corner0, corner1 = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (corner1 - corner0).clamp(min=0).prod(-1)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    iou = shared / (size_a.prod(-1) + size_b.prod(-1) - shared + 1e-7)
    if not complete:
        return iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) ** 2).sum(-1) / 4
    angle = torch.atan(size_b[..., 0] / (size_b[..., 1] + 1e-7)) - torch.atan(size_a[..., 0] / (size_a[..., 1] + 1e-7))
    v = 4 / torch.pi**2 * angle**2
    with torch.no_grad():
        weight = v / (v - iou + 1 + 1e-7)
    return iou - distance / ((hull**2).sum(-1) + 1e-7) - v * weight


def assign(
    scores: Tensor, boxes: Tensor, truth: Tensor, places: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each truth box the places whose score and overlap agree best.

    Parameters
    ----------
    scores : Tensor, shape (batch, n, classes)
        Predicted, 0..1.
    boxes : Tensor, shape (batch, n, 4)
        Predicted corners, in pixels.
    truth : Tensor, shape (batch, m, 6)
        Rows of class, corners, ignore; class -1 where unused.
    places, strides : Tensor
        As returned by grid.

    Returns
    -------
    wanted : Tensor, shape (batch, n, classes)
        Scores to reach.
    target : Tensor, shape (batch, n, 4)
        Boxes to reach, where any score is wanted.
    counted : Tensor, shape (batch, n, 1)
        0 where the place lies on an ignored box and nothing is wanted, else 1.
    """
    label, corners = truth[..., 0], truth[..., 1:5]
    real = (label >= 0) & (truth[..., 5] == 0)
    centre, size = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    # A box narrower than a cell may hold no cell's centre: it reaches at least to the nearest ones.
    reach = torch.maximum(size[:, :, None] / 2, strides[None, None, :, None] * 0.55)
    inside = ((places - centre[:, :, None]).abs() < reach).all(-1)
    iou = overlap(boxes[:, None], corners[:, :, None])
    chosen_scores = scores.transpose(1, 2).gather(
        1, label.clamp(min=0).long()[..., None].expand(-1, -1, scores.shape[1])
    )
    align = chosen_scores**ALIGN_SCORE * iou**ALIGN_IOU
    align = torch.where(inside & real[..., None], align + 1e-12, torch.zeros_like(align))
    best = align.topk(CANDIDATES, -1)
    positive = torch.zeros_like(align, dtype=torch.bool).scatter_(-1, best.indices, best.values > 0)
    rivals = torch.where(positive, iou + 1e-9, torch.full_like(iou, -1.0))
    owner = rivals.argmax(1)
    positive &= torch.zeros_like(positive).scatter_(1, owner[:, None], True)
    align = align * positive
    strength = align / (align.amax(-1, keepdim=True) + 1e-12) * (iou * positive).amax(-1, keepdim=True)
    share = strength.sum(1)
    target = corners.gather(1, owner[..., None].expand(-1, -1, 4))
    kind = label.gather(1, owner).clamp(min=0).long()
    wanted = functional.one_hot(kind, CLASSES) * (share * positive.any(1))[..., None]
    ignored = (label >= 0) & (truth[..., 5] == 1)
    shaded = (((places - centre[:, :, None]).abs() < size[:, :, None] / 2).all(-1) & ignored[..., None]).any(1)
    counted = ~(shaded & ~positive.any(1))
    return wanted, target, counted[..., None]


def loss(raw: Tensor, truth: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Return the loss of raw predictions.

    Parameters
    ----------
    raw : Tensor, shape (batch, n, 4 + classes)
        As the detector gives it.
    truth : Tensor, shape (batch, m, 6)
        As for assign.
    places, strides : Tensor
        As returned by grid.

    Returns
    -------
    Tensor
        One number.
    """
    boxes = decode(raw, places, strides)
    with torch.no_grad():
        wanted, target, counted = assign(raw[..., 4:].sigmoid(), boxes, truth, places, strides)
    total = wanted.sum().clamp(min=1.0)
    scores = functional.binary_cross_entropy_with_logits(raw[..., 4:], wanted, reduction="none")
    weight = wanted.sum(-1)
    held = weight > 0
    fit = ((1 - overlap(boxes[held], target[held], complete=True)) * weight[held]).sum()
    return ((scores * counted).sum() + BOX_WEIGHT * fit) / total
