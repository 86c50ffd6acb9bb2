"""Captioned pictures that a visitor sends: a zip, looked through and written anew before anything reads them.

    <picture> anywhere, with `metadata.jsonl` ({"file_name": "1.png", "text": "a red house"}) or `<picture>.txt` beside

A picture without a caption is called by its file's name; captions can be written anew afterwards. `accept` does this in
a process of its own (`aside`), with limits.
"""

import json
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from peft_compare.aside import done_aside
from peft_compare.refusals import RefusedError
from peft_compare.settings import MIB, Limits
from peft_compare.uploads import ENDINGS, FOLDER, ID, SUMMARY, check_entry, decoded, litter, thumbnail

METADATA, LEAST, SHOWN, LONGEST = "metadata.jsonl", 3, 18, 500


@dataclass(frozen=True)
class Captioned:
    """What was accepted: the stored files with their captions, and the first thumbnails as `data:` addresses."""

    id: str
    names: list[str]
    captions: list[str]
    thumbnails: list[str]


def accept(archive: Path, runs: Path, limits: Limits) -> Captioned:
    """Check an upload and store its pictures below the folder of runs.

    Raises:
        RefusedError: it is too large, no zip, holds something else, or took too long; nothing is kept.
    """
    place = runs / FOLDER / secrets.token_hex(16)
    place.parent.mkdir(exist_ok=True)
    try:
        words = [str(archive), str(place), json.dumps(asdict(limits))]
        found = done_aside("captioned_uploads", words, limits.seconds, "looking through the upload")
    except RefusedError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return Captioned(**found)


def find(runs: Path, upload: str) -> Captioned | None:
    """An upload that was accepted, by its id."""
    if not ID.fullmatch(upload or ""):
        return None
    try:
        return Captioned(**json.loads((runs / FOLDER / upload / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def main(words: list[str]) -> dict:
    """Look through the zip `words[0]` and write its pictures into the folder `words[1]`."""
    archive, place, limits = Path(words[0]), Path(words[1]), Limits(**json.loads(words[2]))
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = limits.pixels
    if archive.stat().st_size > limits.upload_bytes:
        raise RefusedError(f"the file has more than {limits.upload_bytes // MIB} MiB")
    try:
        with zipfile.ZipFile(archive) as opened:
            return asdict(_store(opened, place, limits))
    except zipfile.BadZipFile:
        raise RefusedError("the file is no zip, or it is damaged") from None


def _store(archive: zipfile.ZipFile, place: Path, limits: Limits) -> Captioned:
    infos = [info for info in archive.infolist() if not info.is_dir() and not litter(info.filename)]
    if len(infos) > 2 * limits.pictures + 1:
        raise RefusedError(f"the zip holds {len(infos):,} files, at most {limits.pictures:,} pictures may be sent")
    if sum(info.file_size for info in infos) > limits.unpacked_bytes:
        raise RefusedError(f"unpacked, the zip has more than {limits.unpacked_bytes // MIB} MiB")
    for info in infos:
        check_entry(info)
    pictures = [info for info in infos if info.filename.lower().endswith(ENDINGS)]
    if len(pictures) < LEAST:
        raise RefusedError(
            f"the zip holds {len(pictures)} pictures ({', '.join(ENDINGS)}): at least {LEAST} are needed"
        )
    room, said = limits.unpacked_bytes, dict(_captions(archive, infos, limits))
    names, captions, shown = [], [], []
    place.mkdir(parents=True)
    for number, info in enumerate(pictures):
        with archive.open(info) as file:
            picture, size = decoded(file, info.filename, limits, room)
        room -= size
        stem = str(PurePosixPath(info.filename).with_suffix(""))
        names.append(f"{number:05}.png")
        captions.append(said.get(info.filename) or said.get(stem) or _called(stem))
        picture.save(place / names[-1])
        if len(shown) < SHOWN:
            shown.append(thumbnail(picture))
    found = Captioned(place.name, names, captions, shown)
    (place / SUMMARY).write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _captions(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], limits: Limits) -> Iterator[tuple[str, str]]:
    """Captions by the picture's name in the zip, or by that name without its ending."""
    for info in infos:
        path = PurePosixPath(info.filename)
        if path.suffix.lower() not in (".txt", ".jsonl") or info.file_size > MIB:
            continue
        text = archive.read(info)[:MIB].decode("utf-8", errors="replace")
        if path.suffix.lower() == ".txt":
            yield str(path.with_suffix("")), " ".join(text.split())[:LONGEST]
        elif path.name == METADATA:
            for line in filter(str.strip, text.splitlines()):
                try:
                    row = json.loads(line)
                    yield str(path.parent / row["file_name"]), " ".join(str(row["text"]).split())[:LONGEST]
                except (ValueError, KeyError, TypeError):
                    raise RefusedError(
                        f'{info.filename} has the line {line[:60]!r}: expected {{"file_name": "1.png", "text": "..."}}'
                    ) from None


def _called(stem: str) -> str:
    return " ".join(PurePosixPath(stem).name.replace("_", " ").replace("-", " ").split())
