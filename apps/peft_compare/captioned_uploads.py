"""Captioned pictures that a visitor sends: a zip, looked through and written anew before anything reads them.

    <picture> anywhere, with `metadata.jsonl` ({"file_name": "1.png", "text": "a red house"}) or `<picture>.txt` beside

A picture without a caption is called by its file's name; captions can be written anew afterwards. `accept` does this in
a process of its own (`aside`), with limits.
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peft_compare.refusals import RefusedError
from peft_compare.settings import MIB, Limits
from peft_compare.uploads import ENDINGS, check_entry, decoded, found, litter, looked_through, stored, thumbnail

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
    return stored("captioned_uploads", Captioned, archive, runs, limits)


def find(runs: Path, upload: str) -> Captioned | None:
    """An upload that was accepted, by its id."""
    return found(Captioned, runs, upload)


def main(words: list[str]) -> dict:
    """Look through the zip `words[0]` and write its pictures into the folder `words[1]`."""
    return looked_through(words, _store)


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
    return Captioned(place.name, names, captions, shown)


def _captions(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], limits: Limits) -> Iterator[tuple[str, str]]:
    """Captions by the picture's name in the zip, or by that name without its ending."""
    for info in infos:
        path = PurePosixPath(info.filename)
        if path.suffix.lower() not in (".txt", ".jsonl") or info.file_size > MIB:
            continue
        text = archive.read(info)[:MIB].decode("utf-8-sig", errors="replace")
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
