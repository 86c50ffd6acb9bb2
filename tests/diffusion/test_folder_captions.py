"""Captions of a user's folder: in `metadata.jsonl`, in a text file beside each picture, or one for all."""

import json
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

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


def test_what_macos_puts_beside_pictures_and_hidden_files_are_none_of_them(root: Path) -> None:
    zipped = root / "stars.zip"
    with ZipFile(zipped, "w") as archive:
        archive.write(root / "0.png", "stars/0.png")
        archive.write(root / "0.txt", "stars/0.txt")
        for name in ("__MACOSX/stars/._0.png", "stars/.DS_Store", "stars/.thumbs/0.png"):
            archive.writestr(name, b"none")
    assert captions(FolderPictures(zipped)) == ["star 0, red"]
    (root / ".cache").mkdir()
    (root / ".cache" / "3.png").write_bytes(b"none")
    assert len(FolderPictures(root)) == 3


def test_metadata_may_have_a_byte_order_mark_and_empty_lines(root: Path) -> None:
    line = json.dumps({"file_name": "0.png", "text": "a\u2028star"}, ensure_ascii=False)
    (root / "metadata.jsonl").write_text(f"{line}\n\n", encoding="utf-8-sig")
    assert captions(FolderPictures(root)) == ["a\u2028star"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"file_name": "0.png", "text": "\xff"}', r"metadata\.jsonl is no text in UTF-8"),
        (b'{"file_name": "0.png", "text": 5}', r"line 1, has 5 as 'text', which is no text"),
        (b'{"file_name": "0.png"}', r"line 1, has no 'text': it has 'file_name'"),
    ],
    ids=("encoding", "number", "missing"),
)
def test_wrong_metadata_are_one_sentence(root: Path, content: bytes, reason: str) -> None:
    (root / "metadata.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        FolderPictures(root)


def test_a_damaged_zip_is_named(root: Path) -> None:
    zipped = root / "stars.zip"
    with ZipFile(zipped, "w", ZIP_DEFLATED) as archive:
        archive.write(root / "0.png", "0.png")
        archive.writestr("0.txt", "star " * 50)
    content = bytearray(zipped.read_bytes())
    at = content.index(b"0.txt") + len("0.txt")
    content[at : at + 4] = b"\xff" * 4
    zipped.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.txt cannot be read"):
        FolderPictures(zipped)
