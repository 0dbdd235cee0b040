"""`gridnode submit` without a grid: which pictures are meant, and what is told of an answer."""

import pytest
from PIL import Image

from gridnode.cli.main import main
from gridnode.cli.options import UsageError
from gridnode.cli.submit import Easel, describe, find_pictures, summary_text
from gridnode.errors import JobDeadlineError
from gridnode.results import Box, Detection, Result, Timings


def make_result(*names):
    detections = tuple(
        Detection(class_name=name, class_index=0, score=0.9, box=Box(1.0, 1.0, 9.0, 9.0)) for name in names
    )
    timings = Timings(total_s=0.1, queue_s=0.0, transfer_s=0.0, service_s=0.1, client_s=0.1)
    return Result(
        key=b"\x01" * 24, model="m", model_digest="d", node="fast", node_id="12D", hops=1, detections=detections,
        image_size=(32, 24), timings=timings,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "notes.txt"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no picture")
        else:
            Image.new("RGB", (32, 24)).save(path)
    return tmp_path / "pictures"


def test_a_folder_stands_for_its_pictures_in_order(folder):
    assert [path.name for path in find_pictures([folder])] == ["a.png", "b.JPG", "c.jpeg"]


def test_a_file_is_taken_whatever_its_name(folder):
    assert find_pictures([folder / "notes.txt"]) == [folder / "notes.txt"]


def test_missing_files_and_empty_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(UsageError, match=r"nothing\.jpg"):
        find_pictures([tmp_path / "nothing.jpg"])


def test_a_missing_picture_is_wrong_usage(tmp_path, capsys):
    assert main(["submit", "street", str(tmp_path / "nothing.jpg")]) == 2
    assert "check the path" in capsys.readouterr().err


def test_an_answer_is_summed_up_by_class(folder):
    line = describe(folder / "a.png", make_result("vehicle", "person", "vehicle"))
    assert summary_text(line) == "1 person, 2 vehicle"
    assert line["key"] == "01" * 24
    assert summary_text(describe(folder / "a.png", make_result())) == "nothing found"


def test_an_error_keeps_its_name(folder):
    line = describe(folder / "a.png", JobDeadlineError("too late"))
    assert (line["error"], line["message"]) == ("JobDeadlineError", "too late")


def test_pictures_of_one_name_do_not_overwrite_each_other(folder, tmp_path):
    easel = Easel(tmp_path / "out")
    drawn = [easel.draw(folder / "a.png", make_result("vehicle")) for _ in range(2)]
    assert [path.name for path in drawn] == ["a.jpg", "a-2.jpg"]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.size == (32, 24)
