"""Uploads: what is accepted, and the sentence for what is not; nothing of a refused one stays."""

import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from peft_compare.refusals import RefusedError
from peft_compare.settings import MIB, Limits
from peft_compare.uploads import FOLDER, KEPT, accept, find, sweep


def picture(shade: int = 0, size: tuple[int, int] = (12, 9)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 80, 80)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def classes(*names: str, count: int = 5) -> dict[str, bytes]:
    return {f"{name}/{place}.png": picture(40 * place) for name in names for place in range(count)}


def packed(folder: Path, files: Mapping[str, bytes]) -> Path:
    target = folder / "sent.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def test_class_folders_are_divided_and_stored_as_plain_pictures(tmp_path: Path) -> None:
    sent = packed(tmp_path, {f"all/{name}": data for name, data in classes("cat", "dog", count=10).items()})
    found = accept(sent, tmp_path, Limits())
    assert found.train == {"cat": 8, "dog": 8}
    assert found.test == {"cat": 2, "dog": 2}
    stored = sorted((tmp_path / FOLDER / found.id).rglob("*.png"))
    assert len(stored) == 20
    with Image.open(stored[0]) as first:
        assert (first.format, first.mode, first.size) == ("PNG", "RGB", (12, 9))
    assert find(tmp_path, found.id) == found
    assert all(address.startswith("data:image/png") for shown in found.thumbnails.values() for address in shown)


def test_a_division_of_the_senders_stays(tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in classes("a", "b", count=3).items()}
    files |= {f"val/{name}": data for name, data in classes("a", "b", count=2).items()}
    found = accept(packed(tmp_path, files), tmp_path, Limits())
    assert (found.train, found.test) == ({"a": 3, "b": 3}, {"a": 2, "b": 2})


REFUSED = {
    "path above": ({**classes("a", "b"), "../../a/x.png": picture()}, "which leaves its folder"),
    "path from the root": ({**classes("a", "b"), "/a/x.png": picture()}, "which leaves its folder"),
    "something else": ({**classes("a", "b"), "a/run.sh": b"#!"}, "'a/run.sh' is no picture"),
    "broken picture": ({**classes("a", "b"), "a/x.png": picture()[:40]}, "'a/x.png' is no whole picture"),
    "another format": ({**classes("a", "b"), "a/x.png": b"<svg/>"}, "'a/x.png' is no whole picture"),
    "bomb of pixels": ({**classes("a", "b"), "a/x.png": bomb()}, "'a/x.png' is no whole picture"),
    "one class": (classes("a"), "one class, 'a'"),
    "few pictures": ({**classes("a"), **classes("b", count=2)}, "class 'b' has 2 pictures to train on and 0"),
    "no folders": ({"x.png": picture(), "y.png": picture()}, "lies in no class folder"),
    "nothing": ({}, "the zip is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(tmp_path: Path, case: str) -> None:
    files, said = REFUSED[case]
    with pytest.raises(RefusedError, match=said):
        accept(packed(tmp_path, files), tmp_path, Limits())
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_no_zip_is_refused(tmp_path: Path) -> None:
    sent = tmp_path / "sent.zip"
    sent.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(RefusedError, match="no zip"):
        accept(sent, tmp_path, Limits())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(pictures=9), "holds 10 files, at most 9"),
        (Limits(pixels=100), "is no whole picture|at most 100"),
        (Limits(upload_bytes=100), "more than 0 MiB"),
        (Limits(unpacked_bytes=MIB // 2), "unpacked, the zip has more than 0 MiB"),
        (Limits(seconds=0.01), "took longer than 0.01 s"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, said: str) -> None:
    files = classes("a", "b")
    if limits.unpacked_bytes < MIB:
        files["a/0.png"] = picture() + b"\0" * MIB
    with pytest.raises(RefusedError, match=said):
        accept(packed(tmp_path, files), tmp_path, limits)


def test_uploads_without_a_run_go_after_a_day(tmp_path: Path) -> None:
    used, young, old = (accept(packed(tmp_path, classes("a", "b")), tmp_path, Limits()).id for _ in range(3))
    for name in (used, old):
        os.utime(tmp_path / FOLDER / name, (0, time.time() - KEPT - 10))
    sweep(tmp_path, {str(tmp_path / FOLDER / used)})
    assert {place.name for place in (tmp_path / FOLDER).iterdir()} == {used, young}
