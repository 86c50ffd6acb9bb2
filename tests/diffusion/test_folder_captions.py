"""Captions of a user's folder: in `metadata.jsonl`, in a text file beside each picture, or one for all."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from diffusion_peft.data.folder import FolderPictures
from peft_kernels.data_errors import DataError
from tests.diffusion.command import picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures, one in a folder of its own, with captions beside them."""
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("0.png", "1.jpg", "more/2.png")):
        picture(number).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"star {number},\n  red", encoding="utf-8")
    return tmp_path


def captions(pictures: FolderPictures) -> list[str]:
    return [pictures.drawn((0, index)).caption for index in range(len(pictures))]


def test_a_text_file_beside_each_picture_is_its_caption(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wanted = ["star 0, red", "star 1, red", "star 2, red"]
    assert captions(FolderPictures(root)) == wanted
    zipped = tmp_path_factory.mktemp("zip") / "stars.zip"
    with ZipFile(zipped, "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(root))
    assert captions(FolderPictures(zipped)) == wanted


def test_metadata_and_a_prompt_come_before_text_files(root: Path) -> None:
    assert captions(FolderPictures(root, prompt="a star")) == ["a star"] * 3
    line = json.dumps({"file_name": "1.jpg", "said": "the middle one"})
    (root / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    assert captions(FolderPictures(root, column="said")) == ["the middle one"]


def test_a_picture_without_its_text_file_is_named(root: Path) -> None:
    (root / "1.txt").unlink()
    with pytest.raises(DataError, match=r"1\.jpg has no caption, as others have: 1\.txt is missing"):
        FolderPictures(root)
    (root / "1.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"1\.txt is no text in UTF-8"):
        FolderPictures(root)
