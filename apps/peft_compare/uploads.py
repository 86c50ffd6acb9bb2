"""Pictures that a visitor sends: a zip of class folders, looked through and written anew before anything reads them.

    <class>/<picture>                 every fifth picture of a class is kept for testing
    train/<class>/..., test/<class>/...   as they are divided

Everything is decoded and stored as a plain PNG below names of our own; nothing of the zip reaches the disk as it was.
`accept` does this in a process of its own (`aside`), with limits.
"""

import base64
import io
import json
import re
import secrets
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from PIL import Image, UnidentifiedImageError

from peft_compare.aside import done_aside
from peft_compare.refusals import RefusedError
from peft_compare.settings import MIB, Limits

FOLDER, SUMMARY = "uploads", "summary.json"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
PARTS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
LARGEST_SIDE = 512  # pixels of a stored picture
TEST_EVERY = 5
FEWEST = 2  # pictures of a class in each part, so that it can be learnt and judged
SHOWN, THUMBNAIL = 6, 40
KEPT = 24 * 3600.0  # seconds that an upload without a run stays
ID = re.compile(r"[0-9a-f]{32}")
Kind = TypeVar("Kind")  # of a summary


@dataclass(frozen=True)
class Summary:
    """What was accepted: the numbers of each class, and the first thumbnails as `data:` addresses."""

    id: str
    train: dict[str, int]
    test: dict[str, int]
    thumbnails: dict[str, list[str]]


def accept(archive: Path, runs: Path, limits: Limits) -> Summary:
    """Check an upload and store its pictures below the folder of runs.

    Raises:
        RefusedError: it is too large, no zip, holds something else, or took too long; nothing is kept.
    """
    return stored("uploads", Summary, archive, runs, limits)


def find(runs: Path, upload: str) -> Summary | None:
    """An upload that was accepted, by its id."""
    return found(Summary, runs, upload)


def stored(module: str, kind: type[Kind], archive: Path, runs: Path, limits: Limits) -> Kind:
    """What `main` of this module makes of a zip, apart, in a new folder below the folder of runs.

    Raises:
        RefusedError: as it says; nothing is kept.
    """
    place = new_place(runs)
    try:
        words = [str(archive), str(place), json.dumps(asdict(limits))]
        return kind(**done_aside(module, words, limits.seconds, "looking through the upload"))
    except RefusedError:
        shutil.rmtree(place, ignore_errors=True)
        raise


def new_place(runs: Path) -> Path:
    """A folder for an upload that is not there yet; its name is a secret."""
    place = runs / FOLDER / secrets.token_hex(16)
    place.parent.mkdir(exist_ok=True)
    return place


def found(kind: type[Kind], runs: Path, upload: str) -> Kind | None:
    """What is known of an accepted upload, if it is one of this kind."""
    if not ID.fullmatch(upload or ""):
        return None
    try:
        return kind(**json.loads((runs / FOLDER / upload / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def sweep(runs: Path, used: set[str]) -> None:
    """Remove uploads that no run uses and that nobody has started one with for a day."""
    for place in (runs / FOLDER).glob("*"):
        if str(place) not in used and time.time() - place.stat().st_mtime > KEPT:
            shutil.rmtree(place, ignore_errors=True)


def main(words: list[str]) -> dict:
    """Look through the zip `words[0]` and write its pictures into the folder `words[1]`."""
    return looked_through(words, _store)


def looked_through(words: list[str], store: Callable[[zipfile.ZipFile, Path, Limits], Any]) -> dict:
    """What `store` makes of the zip `words[0]` in the folder `words[1]`, kept there as well.

    Raises:
        RefusedError: it is too large, or no zip.
    """
    archive, place, limits = Path(words[0]), Path(words[1]), Limits(**json.loads(words[2]))
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    if archive.stat().st_size > limits.upload_bytes:
        raise RefusedError(f"the file has more than {limits.upload_bytes // MIB} MiB")
    try:
        with zipfile.ZipFile(archive) as opened:
            summary = asdict(store(opened, place, limits))
    except zipfile.BadZipFile:
        raise RefusedError("the file is no zip, or it is damaged") from None
    (place / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    return summary


def _store(archive: zipfile.ZipFile, place: Path, limits: Limits) -> Summary:
    entries = list(_entries(archive, limits))
    divided = any(part is not None for part, _, _ in entries)
    if divided and (odd := next((info.filename for part, _, info in entries if part is None), None)):
        raise RefusedError(f"some pictures lie in train/ and test/, but {odd!r} in neither")
    counts: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    seen: dict[str, int] = {}
    thumbnails: dict[str, list[str]] = {}
    names: dict[str, str] = {}  # the class as the visitor calls it → its folder
    read = 0
    for part, label, info in entries:
        number = seen[label] = seen.get(label, 0) + 1
        part = part or ("test" if number % TEST_EVERY == 0 else "train")
        with archive.open(info) as file:
            picture, size = decoded(file, info.filename, limits, limits.unpacked_bytes - read)
        read += size
        folder = names.setdefault(label, _plain(label, names))
        target = place / part / folder
        target.mkdir(parents=True, exist_ok=True)
        picture.save(target / f"{number:05}.png")
        counts[part][label] = counts[part].get(label, 0) + 1
        shown = thumbnails.setdefault(label, [])
        if len(shown) < SHOWN:
            shown.append(thumbnail(picture))
    _enough(counts)
    return Summary(place.name, counts["train"], counts["test"], thumbnails)


def _entries(archive: zipfile.ZipFile, limits: Limits) -> Iterator[tuple[str | None, str, zipfile.ZipInfo]]:
    """Part, class and entry of each picture."""
    infos = [info for info in archive.infolist() if not info.is_dir() and not litter(info.filename)]
    if len(infos) > limits.pictures:
        raise RefusedError(f"the zip holds {len(infos):,} files, at most {limits.pictures:,} may be sent")
    if sum(info.file_size for info in infos) > limits.unpacked_bytes:
        raise RefusedError(f"unpacked, the zip has more than {limits.unpacked_bytes // MIB} MiB")
    if not infos:
        raise RefusedError("the zip is empty")
    tops = {PurePosixPath(info.filename).parts[0] for info in infos}
    depth = 1 if len(tops) == 1 and all(len(PurePosixPath(info.filename).parts) > 2 for info in infos) else 0
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name).parts
        check_entry(info)
        if not name.lower().endswith(ENDINGS):
            raise RefusedError(f"{name!r} is no picture: expected {', '.join(ENDINGS)} in class folders")
        inner = parts[depth:]
        part = PARTS.get(inner[0].lower()) if len(inner) == 3 else None
        if len(inner) - (part is not None) != 2:
            raise RefusedError(f"{name!r} lies in no class folder: expected CLASS/PICTURE, or train/ and test/ above")
        yield part, inner[-2], info


def check_entry(info: zipfile.ZipInfo) -> None:
    """Raise where an entry of a zip is no plain file below it.

    Raises:
        RefusedError: it leaves its folder, is a link, or is locked.
    """
    name = info.filename
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "\\")) or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
        raise RefusedError(f"the zip holds the path {name!r}, which leaves its folder")
    if info.flag_bits & 1:
        raise RefusedError("the zip is locked with a password")
    if info.external_attr >> 16 & 0o170000 == 0o120000:
        raise RefusedError(f"the zip holds the link {name!r}")


def litter(name: str) -> bool:
    """What file managers leave in zips."""
    last = PurePosixPath(name).name
    return name.startswith("__MACOSX/") or last.startswith("._") or last in (".DS_Store", "Thumbs.db", "desktop.ini")


def decoded(file: IO[bytes], name: str, limits: Limits, room: int) -> tuple[Image.Image, int]:
    """The picture in RGB, no larger than is of use, and the bytes it had.

    Raises:
        RefusedError: it is no whole picture, or too large.
    """
    data = file.read(room + 1)  # what the zip says of sizes need not be true
    if len(data) > room:
        raise RefusedError(f"unpacked, the zip has more than {limits.unpacked_bytes // MIB} MiB")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                raise RefusedError(f"{name!r} has {width:,} x {height:,} pixels, at most {limits.pixels:,} may be sent")
            picture.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            plain = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError):
        raise RefusedError(f"{name!r} is no whole picture") from None
    plain.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return plain, len(data)


def _plain(label: str, names: dict[str, str]) -> str:
    """A folder's name for the class, harmless and its own."""
    plain = re.sub(r"[^\w \-]", "_", label)[:60].strip() or "class"
    return plain if plain not in names.values() else f"{plain}-{len(names)}"


def _enough(counts: dict[str, dict[str, int]]) -> None:
    labels = sorted({*counts["train"], *counts["test"]})
    if len(labels) < 2:
        raise RefusedError(f"the zip holds one class, {labels[0]!r}: at least two are needed to tell apart")
    for label in labels:
        train, test = (counts[part].get(label, 0) for part in ("train", "test"))
        if train < FEWEST or test < 1:
            raise RefusedError(
                f"class {label!r} has {train} pictures to train on and {test} to test on: at least {TEST_EVERY} "
                "pictures of each class are needed"
            )


def thumbnail(picture: Image.Image) -> str:
    """A small copy as a `data:` address."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
