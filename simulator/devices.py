"""Devices and links as data: what they need for known models, what they consume, how fast and how late links are.

Each figure names its source. One without a source says that it is assumed: take it for a placeholder, and measure
where it matters (`gridnode model list` on a device shows what the daemon measured). Service times are means at batch 1
with the device alone at work; one runtime for all devices of the main table, so that their ratios mean something.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from simulator.distributions import Lognormal, ServiceTime, Uniform, lognormal_of_quantiles


class Figure(msgspec.Struct, frozen=True):
    """One number and where it comes from."""

    value: float
    source: str = ""
    """Document, page or repository with its revision; empty where assumed."""
    assumed: bool = False


def assumed(value: float) -> Figure:
    """Return a figure that nobody measured."""
    return Figure(value, assumed=True)


# ---------------------------------------------------------------- models


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs on any device."""

    memory_bytes: Figure
    """While loaded."""
    input_bytes: Figure


MODELS: Final[Mapping[str, ModelFigures]] = MappingProxyType(
    {
        "mobilenetv2": ModelFigures(
            memory_bytes=assumed(28e6), input_bytes=Figure(150_528, "224 x 224 x 3 bytes, by arithmetic")
        ),
        "mobilenet-ssd": ModelFigures(
            memory_bytes=assumed(50e6), input_bytes=Figure(270_000, "300 x 300 x 3 bytes, by arithmetic")
        ),
        "resnet50": ModelFigures(
            memory_bytes=assumed(205e6), input_bytes=Figure(150_528, "224 x 224 x 3 bytes, by arithmetic")
        ),
        "yolov4-tiny": ModelFigures(
            memory_bytes=assumed(50e6), input_bytes=Figure(519_168, "416 x 416 x 3 bytes, by arithmetic")
        ),
    }
)
"""Memory is assumed: twice the parameters as 32-bit floats."""


# ---------------------------------------------------------------- devices


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a device."""

    about: str
    service_s: Mapping[str, Figure]
    """Mean service time by model, in seconds."""
    cv: Figure
    """Coefficient of variation of service times."""
    warm_up: Figure
    """First execution after a load, over the others."""
    load_bytes_s: Figure
    """How fast a model is brought into memory."""
    idle_w: Figure | None = None
    busy_w: Figure | None = None
    """Power with one model always at work."""

    def load_s(self, model: str) -> float:
        """Return the time that a model takes from cold to ready, in seconds."""
        return MODELS[model].memory_bytes.value / self.load_bytes_s.value


_NCNN: Final = "Tencent/ncnn, benchmark/README.md at a4d2ea1"
_CORAL: Final = "coral.ai/docs/edgetpu/benchmarks"
_DEEPEDGE: Final = "stephanballer/deepedgebench, raw logs of 5000 images, MobileNetV2; our means"
_COLUMNS: Final = ("mobilenetv2", "mobilenet-ssd", "resnet50", "yolov4-tiny")
_CV: Final = assumed(0.05)
_WARM_UP: Final = assumed(2.0)
_CARD: Final = assumed(40e6)
_DISK: Final = assumed(500e6)


def _device(
    about: str,
    times_ms: tuple[float | None, ...],
    *,
    source: str = _NCNN,
    cv: Figure = _CV,
    warm_up: Figure = _WARM_UP,
    load_bytes_s: Figure = _DISK,
    power_w: tuple[float, float] | None = None,
) -> Device:
    times = zip(_COLUMNS, times_ms, strict=False)
    idle_w, busy_w = (Figure(watts, _DEEPEDGE) for watts in power_w) if power_w else (None, None)
    return Device(
        about=about,
        service_s={model: Figure(ms / 1e3, source) for model, ms in times if ms is not None},
        cv=cv,
        warm_up=warm_up,
        load_bytes_s=load_bytes_s,
        idle_w=idle_w,
        busy_w=busy_w,
    )


_PI_CV: Final = Figure(0.018, f"{_DEEPEDGE}: Pi 4, TensorFlow")
_NANO_CV: Final = Figure(0.061, f"{_DEEPEDGE}: Jetson Nano, TF-TRT")
_NANO_WARM_UP: Final = Figure(154 / 20.6, f"{_DEEPEDGE}: Jetson Nano, TF-TRT, first call 154 ms, then 20.6 ms")
_TPU_CV: Final = Figure(0.066, f"{_DEEPEDGE}: Coral Dev Board, TPU")

DEVICES: Final[Mapping[str, Device]] = MappingProxyType(
    {
        "pi-zero-2w": _device("Pi Zero 2 W, 4 threads", (147.4, 339.5, 782.6, 646.6), load_bytes_s=_CARD),
        "pi3": _device("Pi 3B+, 4 threads", (111.7, 240.6, 587.4, 417.2), load_bytes_s=_CARD),
        "pi3-1t": _device("Pi 3B+, 1 thread", (158.8, 425.9, 979.8, 676.1), load_bytes_s=_CARD),
        "pi4": _device(
            "Pi 4B, 4 threads",
            (61.9, 121.5, 262.8, 207.2),
            cv=_PI_CV,
            load_bytes_s=_CARD,
            power_w=(2.65, 3.72),
        ),
        "pi4-1t": _device("Pi 4B, 1 thread", (93.5, 251.0, 534.1, 373.0), cv=_PI_CV, load_bytes_s=_CARD),
        "pi5": _device("Pi 5, 4 threads", (10.5, 24.5, 46.2, 46.3), load_bytes_s=_CARD),
        "pi5-1t": _device("Pi 5, 1 thread", (16.4, 45.9, 89.4, 68.0), load_bytes_s=_CARD),
        "jetson-nano-cpu": _device(
            "Jetson Nano, CPU, 4 threads", (33.8, 88.5, 204.1, 156.8), load_bytes_s=_CARD, power_w=(1.39, 5.43)
        ),
        "jetson-nano": _device(
            "Jetson Nano, GPU",
            (13.0, 36.6, 93.1, 96.5),
            cv=_NANO_CV,
            warm_up=_NANO_WARM_UP,
            load_bytes_s=_CARD,
            power_w=(1.39, 7.43),
        ),
        "jetson-tx2-nx": _device("Jetson TX2 NX, GPU", (6.8, 15.7, 30.4, 25.4), cv=_NANO_CV),
        "jetson-xavier-cpu": _device("Jetson AGX Xavier, CPU, 8 threads", (8.8, 18.6, 29.4, 31.9)),
        "jetson-xavier": _device("Jetson AGX Xavier, GPU", (6.5, 13.4, 12.2, 31.8), cv=_NANO_CV),
        "jetson-orin-nano-cpu": _device("Jetson Orin Nano, CPU, 6 threads", (6.5, 17.9, 39.3, 34.6)),
        "jetson-orin-nano": _device("Jetson Orin Nano, GPU", (3.8, 10.0, 9.4, 24.6), cv=_NANO_CV),
        "snapdragon-855": _device("Snapdragon 855+, 4 threads", (4.7, 12.0, 26.2, 25.3)),
        "snapdragon-8gen2": _device("Snapdragon 8 Gen 2, 4 threads", (3.2, 9.3, 18.9, 15.0)),
        "nuc-n5105": _device("Celeron N5105, NUC class, 4 threads", (22.7, 68.0, 153.0, 107.5)),
        "atom-z8350": _device("Atom x5-Z8350, 4 threads", (58.4, 169.0, 368.3, 256.4)),
        "i7-7700k-1t": _device("i7-7700K, guest of a virtual machine, 1 thread", (11.2, 32.5, 75.9, 57.9)),
        "i7-11800h-1t": _device("i7-11800H laptop, guest of a virtual machine, 1 thread", (7.9, 25.0, 55.5, 42.5)),
        "i7-13700k": _device("i7-13700K, 16 threads", (2.5, 4.5, 11.3, 14.2)),
        "c5-4xlarge": _device("AWS c5.4xlarge, 8 threads", (4.3, 6.6, 14.1, 25.4)),
        "ryzen-5950x": _device("Ryzen 5950X, 16 threads", (4.4, 7.2, 19.8, 22.5)),
        "apple-m1-1t": _device("Apple M1, 1 thread", (5.7, 22.3, 43.7, 31.3)),
        "v100": _device("V100, Vulkan", (1.8, 5.9, 3.7, 15.6)),
        "rtx-3060ti": _device("RTX 3060 Ti, Vulkan", (1.1, 2.0, 2.1, 6.7)),
        "coral-tpu": _device(
            "Coral Dev Board, Edge TPU, int8; ResNet-50 at 299 x 299",
            (2.6, 14.0, 49.0),  # 49 to 56 ms by version
            source=_CORAL,
            cv=_TPU_CV,
            load_bytes_s=_CARD,
            power_w=(3.08, 4.39),
        ),
        "coral-cpu": _device(
            "Coral Dev Board, Cortex-A53, int8",
            (122.0, 282.0, 1763.0),
            source=_CORAL,
            load_bytes_s=_CARD,
            power_w=(3.08, 4.15),
        ),
    }
)
"""By name, as in a scenario. The variation of other devices than those of the logs is assumed, loading from cards and
disks always; the V100 is of the generation of the Titan V."""


# ---------------------------------------------------------------- links


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What lies between a node and the middle of its network: access point, switch, operator."""

    about: str
    down_bytes_s: Figure
    up_bytes_s: Figure
    rtt_s: Figure
    """Between the node and the middle, typical."""
    loss: Figure
    """Share of packets lost, 0 to 1."""
    jitter: ServiceTime | None = None
    """What is added one way, in seconds, now and then: see coherence_s."""
    jitter_source: str = ""
    jitter_assumed: bool = False
    coherence_s: Figure = assumed(0.0)
    """Least time between two draws of the jitter: a radio that stalls holds up all that is sent meanwhile, once."""

    @property
    def latency_s(self) -> float:
        """One way, in seconds."""
        return self.rtt_s.value / 2.0


def _mbit(rate: float, source: str = "") -> Figure:
    return Figure(rate * 125_000.0, source, assumed=not source)


_OVERWIRELESS: Final = "sarodeoverwireless.com, pings of 24 h"
_RADIO_COHERENCE: Final = assumed(1.0)

LINKS: Final[Mapping[str, LinkProfile]] = MappingProxyType(
    {
        "ethernet": LinkProfile(
            about="switched gigabit Ethernet, payload",
            down_bytes_s=Figure(970 * 125_000.0, "97 % of 1 Gb/s: bandwidth factor of SimGrid's LV08"),
            up_bytes_s=Figure(970 * 125_000.0, "97 % of 1 Gb/s: bandwidth factor of SimGrid's LV08"),
            rtt_s=assumed(0.00015),
            loss=assumed(0.0),
            jitter=Uniform(0.0, 0.00005),
            jitter_assumed=True,
        ),
        "wifi": LinkProfile(
            about="Wi-Fi at home, one access point",
            down_bytes_s=_mbit(100),
            up_bytes_s=_mbit(50),
            rtt_s=Figure(0.005, _OVERWIRELESS),
            loss=assumed(0.005),
            jitter=lognormal_of_quantiles(median_s=0.001, p99_s=0.25),
            jitter_source=f"{_OVERWIRELESS}: p99 of round trips above 500 ms, half of it each way",
            coherence_s=_RADIO_COHERENCE,
        ),
        "wifi-mesh": LinkProfile(
            about="Wi-Fi at home, mesh of access points",
            down_bytes_s=_mbit(100),
            up_bytes_s=_mbit(50),
            rtt_s=Figure(0.005, _OVERWIRELESS),
            loss=assumed(0.002),
            jitter=lognormal_of_quantiles(median_s=0.001, p99_s=0.045),
            jitter_source=f"{_OVERWIRELESS}: p99 of round trips about 90 ms, half of it each way",
            coherence_s=_RADIO_COHERENCE,
        ),
        "mesh-3-hops": LinkProfile(
            about="three dual-band hops of a community mesh",
            down_bytes_s=_mbit(30),
            up_bytes_s=_mbit(30),
            rtt_s=Figure(0.0028, "altermundi.net 2013: least of 100 pings"),
            loss=Figure(0.0, "altermundi.net 2013: none of 100 pings"),
            jitter=Lognormal(0.0021, 2.42),
            jitter_source="altermundi.net 2013: mean 7.0 ms and deviation 7.2 ms of round trips, as two equal ways",
            coherence_s=assumed(0.1),
        ),
        "5g": LinkProfile(
            about="5G, public network",
            down_bytes_s=_mbit(203.04, "Ookla, Q3 2023, median download"),
            up_bytes_s=_mbit(21.08, "Ookla, Q3 2021, upload"),
            rtt_s=Figure(0.03334, "Ookla, O2 CZ, Q2 2024, multi-server latency"),
            loss=assumed(0.001),
            jitter=Uniform(0.0, 0.008),
            jitter_assumed=True,
        ),
        "4g-loaded": LinkProfile(
            about="4G in a crowd",
            down_bytes_s=_mbit(16, "Ookla, Maha Kumbh 2025: 11.6 to 20 Mb/s by operator"),
            up_bytes_s=_mbit(5),
            rtt_s=assumed(0.050),
            loss=assumed(0.005),
            jitter=Uniform(0.0, 0.015),
            jitter_assumed=True,
        ),
    }
)
"""By name, as in a scenario."""
