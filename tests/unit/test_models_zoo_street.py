import io
import math
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from models.average_precision import mean_average_precision
from models.detection import detect
from models.imaging import decode, preprocess
from models.manifest import check_name
from models.zoo import convpool
from models.zoo.packages import STREET_POSTPROCESSING, STREET_PREPROCESSING, ZOO
from models.zoo.street.figures import Camera
from models.zoo.street.light import Grain, Light
from models.zoo.street.measure import find, open_session
from models.zoo.street.people import pedestrian, person
from models.zoo.street.scenery import COARSE, Street
from models.zoo.street.scenes import CLASS_NAMES, random_scenes, render_video
from models.zoo.street.stage import Actor, Stage
from models.zoo.street.vehicles import trailer, vehicle

SIZE = (640, 360)
FLOORS = {"street": 0.78, "street-small": 0.68}
"""Least mAP@0.5 on 40 scenes that no training has seen; see CARD.md for what larger sets give."""


@pytest.fixture(scope="module")
def scenes():
    return list(random_scenes("test of the zoo", 40))


@pytest.fixture(scope="module")
def film():
    return list(render_video(seed="test of the zoo", frames=30, fps=15))


@pytest.fixture
def stage():
    """Make an empty plain of a colour that nobody wears, with no things and no houses."""
    width, height = SIZE
    coarse = (height // COARSE, width // COARSE)
    street = Street(
        camera=Camera(width=width, height=height, focal_px=640, centre_px=320, horizon_px=100, x_m=0.0, height_m=1.5),
        road_half_m=4.0,
        lanes=(),
        parking_m=(),
        pavement_m=3.0,
        junction_m=None,
        walls=None,
        haze_per_m=0.0,
        things=(),
        lamps=np.zeros((0, 3)),
        backdrop=Image.new("RGB", SIZE, (250, 0, 250)),
        sky=np.zeros(coarse, np.float32),
        lamplight=np.zeros((*coarse, 3), np.float32),
    )
    return Stage(street, Grain(np.random.default_rng(0), SIZE))


def walker(x_m: float, z_m: float, seed: int = 0) -> Actor:
    figure = pedestrian(person(np.random.default_rng(seed)), 1.0)
    return Actor(class_name="pedestrian", figure=figure, x_m=x_m, z_m=z_m, heading=0.0)


def van(x_m: float, z_m: float) -> Actor:
    figure = vehicle(np.random.default_rng(5))
    return Actor(class_name="vehicle", figure=figure, x_m=x_m, z_m=z_m, heading=0.0)


def truth_of(stage: Stage, *actors: Actor):
    return stage.render(list(actors), Light(sun=1.0), np.random.default_rng(0), noise=1.5)[1]


# --- what counts as truth


def test_truth_box_is_tight_around_the_drawn_object(stage):
    light, rng = Light(sun=1.0), np.random.default_rng(0)
    image, (truth,) = stage.render([walker(0.0, 10.0)], light, rng, noise=1.5)
    # Ground and shadow have no green in them.
    solid = np.asarray(image)[..., 1] > 22
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(truth.box) - np.array(seen)).max() <= 1
    assert truth.class_name == "pedestrian"
    assert not truth.ignore


def test_object_hidden_for_the_most_part_is_ignored(stage):
    hidden, seen = walker(0.0, 14.0), van(0.4, 9.0)
    truths = {truth.class_name: truth for truth in truth_of(stage, hidden, seen)}
    assert not truths["vehicle"].ignore
    assert "pedestrian" not in truths or truths["pedestrian"].ignore


def test_object_hidden_entirely_is_not_there(stage):
    assert [truth.class_name for truth in truth_of(stage, walker(0.2, 30.0), van(0.4, 6.0))] == ["vehicle"]


def test_object_too_small_to_ask_for_is_ignored(stage):
    # A person of about 1.7 m at 60 m is 18 px tall, 9 px of the model's input.
    assert [truth.ignore for truth in truth_of(stage, walker(0.0, 60.0))] == [True]
    assert [truth.ignore for truth in truth_of(stage, walker(0.0, 20.0))] == [False]


def test_object_cut_off_by_the_frame_is_ignored_where_little_is_left(stage):
    # At 10 m the frame ends 5 m beside the camera, the vehicle is about 4 m long.
    assert [truth.ignore for truth in truth_of(stage, van(4.0, 10.0))] == [False]
    assert [truth.ignore for truth in truth_of(stage, van(6.3, 10.0))] == [True]
    assert truth_of(stage, van(12.0, 10.0)) == []


def test_trailer_is_a_picture_of_no_vehicle():
    assert not trailer(np.random.default_rng(0)).headlights
    assert vehicle(np.random.default_rng(0)).headlights


# --- scenes and film


def test_equal_seeds_draw_equal_scenes():
    (first, truth), (again, same) = (next(random_scenes("seed", 1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert truth == same
    assert not np.array_equal(first, next(random_scenes("other seed", 1))[0])


def test_scenes_are_rgb_with_boxes_inside(scenes):
    for frame, truth in scenes:
        assert frame.shape == (360, 640, 3)
        assert frame.dtype == np.uint8
        for item in truth:
            assert 0 <= item.box[0] < item.box[2] <= 640
            assert 0 <= item.box[1] < item.box[3] <= 360
    assert {item.class_name for _, truth in scenes for item in truth} == set(CLASS_NAMES)


def test_equal_seeds_give_equal_films(film):
    again = list(render_video(seed="test of the zoo", frames=2, fps=15))
    assert again == film[:2]


def test_film_moves_smoothly(film):
    frames = [decode(jpeg).astype(np.int16) for jpeg, _ in film[:10]]
    changes = [np.abs(after - before).mean() for before, after in pairwise(frames)]
    assert 0.1 < max(changes) < 12


def test_film_starts_by_day_and_reaches_the_night():
    frames = list(render_video(seed="day", frames=3, fps=1 / 30))
    day, _, night = (decode(jpeg).mean() for jpeg, _ in frames)
    assert day > 1.5 * night


def test_nobody_drives_through_a_red_light_into_people_who_cross():
    from models.zoo.street import scenes as module
    from models.zoo.street.traffic import ZEBRA_M, Traffic

    rng = np.random.default_rng(1)
    street = module._film_street(rng, SIZE)
    traffic = Traffic(rng, street)
    zebras = [street.junction_m[0] - ZEBRA_M, street.junction_m[1] + ZEBRA_M]
    for tenth in range(0, 520, 2):
        actors = traffic.at(tenth / 10)
        crossing = [
            a
            for a in actors
            if a.class_name == "pedestrian" and abs(a.x_m) < street.road_half_m and math.cos(a.heading) ** 2 > 0.5
        ]
        moving = [a for a in actors if a.class_name == "vehicle" and a.lights and math.sin(a.heading) ** 2 > 0.5]
        for person_ in crossing:
            zebra = min(zebras, key=lambda z, p=person_: abs(z - p.z_m))
            for car in moving:
                clear = abs(car.x_m - person_.x_m) > 1.1 or abs(car.z_m - zebra) > car.figure.length_m / 2 - 0.5
                assert clear, (tenth, car.x_m, car.z_m, person_.x_m, person_.z_m)


# --- the shipped models


def load(name: str) -> onnx.ModelProto:
    return onnx.load(ZOO[name].graph_path, load_external_data=False)


@pytest.mark.parametrize(("name", "limit"), [("street", 1_500_000), ("street-small", 400_000), ("convpool", 100_000)])
def test_model_is_small_and_plain(name, limit):
    assert ZOO[name].graph_path.stat().st_size <= limit
    model = load(name)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert not any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)


def test_small_rung_is_compressed_to_int8():
    model = load("street-small")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert sum(math.prod(tensor.dims) for tensor in weights) <= 350_000
    in_int8 = sum(math.prod(t.dims) for t in weights if t.data_type == onnx.TensorProto.INT8)
    assert in_int8 > 0.95 * sum(math.prod(t.dims) for t in weights)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", ["street", "street-small"])
def test_model_speaks_the_yolo_layout(name):
    model = load(name)
    (taken,), (given,) = model.graph.input, model.graph.output
    assert (taken.name, [d.dim_value for d in taken.type.tensor_type.shape.dim]) == ("images", [1, 3, 320, 320])
    assert (given.name, [d.dim_value for d in given.type.tensor_type.shape.dim][:2]) == ("output0", [1, 7])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["task"] == "detect"
    assert facts["imgsz"] == "[320, 320]"
    assert facts["names"] == str(dict(enumerate(CLASS_NAMES)))


@pytest.mark.parametrize("name", ["street", "street-small"])
def test_model_finds_what_held_out_scenes_hold(name, scenes):
    session = open_session(ZOO[name].graph_path)
    found = [find(session, frame) for frame, _ in scenes]
    assert mean_average_precision(found, [truth for _, truth in scenes]).mean >= FLOORS[name]


@pytest.mark.parametrize("name", ["street", "street-small"])
def test_model_finds_the_objects_of_a_film_by_its_published_settings(name, film):
    jpeg, truth = film[0]
    tensor, geometry = preprocess(jpeg, ZOO[name].preprocessing)
    (output,) = open_session(ZOO[name].graph_path).run(["output0"], {"images": tensor})
    found = detect(output, ZOO[name].postprocessing, geometry)
    wanted = [item for item in truth if not item.ignore]
    assert len(wanted) / 2 <= len(found) <= 2 * len(truth)


@pytest.mark.slow
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2"])
def test_objects_are_found_as_well_in_a_large_jpeg_that_is_decoded_small(subsampling):
    pictures, truth = [], []
    for jpeg, real in render_video(seed="large", frames=30, fps=1 / 3, size=(1280, 720), quality=95):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).save(buffer, "JPEG", quality=85, subsampling=subsampling)
        pictures.append(buffer.getvalue())
        truth.append(real)
    for name in ("street", "street-small"):
        session = open_session(ZOO[name].graph_path)
        small = mean_average_precision([find(session, picture) for picture in pictures], truth)
        whole = mean_average_precision([find(session, decode(picture)) for picture in pictures], truth)
        assert small.mean >= whole.mean - 0.01


# --- how they are described for publishing


@pytest.mark.parametrize("name", list(ZOO))
def test_golden_inputs_fit_the_model_and_never_change(name):
    model, again = ZOO[name].golden_inputs(), ZOO[name].golden_inputs()
    graph = load(name).graph
    assert list(model) == [tensor.name for tensor in graph.input]
    for tensor in graph.input:
        assert model[tensor.name].shape == tuple(d.dim_value for d in tensor.type.tensor_type.shape.dim)
        assert model[tensor.name].dtype == np.float32
        assert np.array_equal(model[tensor.name], again[tensor.name])
    onnxruntime.InferenceSession(ZOO[name].graph_path, providers=["CPUExecutionProvider"]).run(None, model)


def test_names_and_rungs_are_publishable():
    for name, model in ZOO.items():
        check_name(name, what="model name")
        assert model.name == name
        assert set(model.rungs) <= set(ZOO)
    assert ZOO["street"].rungs == ("street-small",)
    assert ZOO["street"].preprocessing == STREET_PREPROCESSING
    assert ZOO["street"].postprocessing == STREET_POSTPROCESSING


def test_reference_workload_is_what_its_seed_builds():
    assert convpool.build().SerializeToString() == ZOO["convpool"].graph_path.read_bytes()
