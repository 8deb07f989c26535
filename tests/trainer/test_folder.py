from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import folder
from trainer.errors import InputError


def write_picture(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (40, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for index in range(count):
            write_picture(tmp_path / split / 'red\'s "class"' / f"{index}.png")
            write_picture(tmp_path / split / "blue" / f"{index}.JPG", (0, 0, 255))
            write_picture(tmp_path / split / "green" / f"{index}.jpeg", (0, 255, 0))
    return tmp_path


def test_load_classes_and_colours_belong_together(pictures: Path) -> None:
    source = folder.load(pictures, image_size=None)
    assert source.classes == ("blue", "green", 'red\'s "class"')
    assert source.train.images.shape == (9, 24, 24, 3)
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.train.images.argmax(axis=3)[:, 12, 12].tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert source.load_test().labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_load_large_pictures_become_32_pixels(tmp_path: Path) -> None:
    for name in "ab":
        write_picture(tmp_path / "train" / name / "0.png", size=(200, 100))
    assert folder.load(tmp_path, image_size=None).train.images.shape[1:] == (32, 32, 3)
    assert folder.load(tmp_path, image_size=64).train.images.shape[1:] == (64, 64, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_load_any_mode_becomes_colour(pictures: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    path = pictures / "train" / "blue" / f"-first.{suffix}"
    Image.new("RGB", (24, 24), (255, 255, 255)).convert(mode).save(path)
    image = folder.load(pictures, image_size=24).train.images[0]
    assert np.array_equal(image, np.full((24, 24, 3), 255))


def test_load_rotated_by_exif_is_upright(pictures: Path) -> None:
    picture = Image.new("RGB", (32, 32), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    picture.save(pictures / "train" / "blue" / "-first.png", exif=exif)
    image = folder.load(pictures, image_size=32).train.images[0]
    assert (image[:16].max(), image[16:].min()) == (0, 255)


def test_load_other_files_are_left_out(pictures: Path) -> None:
    (pictures / "train" / "blue" / "notes.txt").write_text("no picture")
    (pictures / "train" / ".cache").mkdir()
    assert len(folder.load(pictures, image_size=None).train) == 9


def test_load_unreadable_pictures_are_all_named(pictures: Path) -> None:
    bad = pictures / "train" / "blue" / "3.jpg"
    bad.write_bytes(b"not a picture")
    torn = pictures / "train" / "green" / "0.jpeg"
    torn.write_bytes(torn.read_bytes()[:-200])
    with pytest.raises(InputError) as caught:
        folder.load(pictures, image_size=None)
    assert "2 pictures cannot be read" in str(caught.value)
    assert str(bad) in str(caught.value)
    assert str(torn) in str(caught.value)


def test_load_first_picture_unreadable_is_named(pictures: Path) -> None:
    bad = pictures / "train" / "blue" / "0.JPG"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match="1 picture cannot be read") as caught:
        folder.load(pictures, image_size=None)
    assert str(bad) in str(caught.value)


def test_load_many_unreadable_pictures_are_counted(pictures: Path) -> None:
    for index in range(30):
        (pictures / "train" / "blue" / f"x{index}.png").touch()
    with pytest.raises(InputError, match=r"(?s)30 pictures cannot be read.*and 20 more$"):
        folder.load(pictures, image_size=None)


def test_load_class_without_pictures_is_named(pictures: Path) -> None:
    for split in ("train", "test"):
        (pictures / split / "empty").mkdir()
    with pytest.raises(InputError, match="class folders 'empty'"):
        folder.load(pictures, image_size=None)


def test_load_without_test_folder_trains_all_the_same(tmp_path: Path) -> None:
    for name in "ab":
        write_picture(tmp_path / "train" / name / "0.png")
    source = folder.load(tmp_path, image_size=None)
    with pytest.raises(InputError, match="--evaluate_test"):
        source.load_test()


def test_find_location_problem_absent_directory_is_named(tmp_path: Path) -> None:
    problem = folder.find_location_problem(tmp_path / "nowhere")
    assert problem
    assert f"{tmp_path / 'nowhere'} is not a directory" in problem
    assert "train/CLASS/*.jpg" in problem


def test_find_location_problem_no_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert "0 class folders; two at least" in (folder.find_location_problem(tmp_path) or "")


def test_find_location_problem_different_classes_are_named(pictures: Path) -> None:
    assert folder.find_location_problem(pictures) is None
    (pictures / "train" / "owl").mkdir()
    (pictures / "test" / "cat").mkdir()
    problem = folder.find_location_problem(pictures) or ""
    assert "only in train: 'owl'; only in test: 'cat'." in problem
    with pytest.raises(InputError, match="differ"):
        folder.load(pictures, image_size=None)
