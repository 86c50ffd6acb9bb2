"""The one route that gives out files: those of a run, to whoever knows its id."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.responses import FileResponse, Response, StreamingResponse

from peft_compare.runs import Run, Runs

# Shown by the browser; everything else is saved.
INLINE = {".html": "text/html", ".png": "image/png", ".json": "application/json", ".txt": "text/plain; charset=utf-8"}
# A report has no scripts; a page that somebody else has written gets none to run.
SEALED = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"


def router(runs: Runs, examples: Path) -> APIRouter:
    """`/runs/{id}/files/{path}` and `/runs/{id}/adapter/{place}.zip`.

    Args:
        examples: the folder of the comparisons that come with the app; they go by their names.
    """
    routes = APIRouter()

    @routes.get("/runs/{run_id}/files/{path:path}")
    def give_file(run_id: str, path: str) -> Response:
        file = inside(_found(runs, examples, run_id), path)
        if not file.is_file():
            raise HTTPException(404, "There is no such file.")
        kind = INLINE.get(file.suffix.lower())
        headers = {"content-security-policy": SEALED, "cache-control": "private, no-cache"}
        if kind is None:
            return FileResponse(file, filename=file.name, headers=headers)
        return FileResponse(file, media_type=kind, headers=headers)

    @routes.get("/runs/{run_id}/zip/{path:path}")
    def give_folder(run_id: str, path: str) -> Response:
        root = _found(runs, examples, run_id)
        folder = inside(root, path)
        if not folder.is_dir():
            raise HTTPException(404, "There is no such folder.")
        name = "-".join(folder.relative_to(root.resolve()).parts[1:]) or "run"
        headers = {"content-disposition": f'attachment; filename="{name}.zip"'}
        return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)

    return routes


def _found(runs: Runs, examples: Path, run_id: str) -> Path:
    example = find_example(examples, run_id)
    if example is not None:
        return example.path
    run = runs.find(run_id)
    if run is None:
        raise HTTPException(404, "There is no such run.")
    return run.path


def find_example(examples: Path, name: str) -> Run | None:
    """The comparison of this name that comes with the app."""
    return next((run for run in examples_in(examples) if run.id == name), None)


def examples_in(examples: Path) -> list[Run]:
    """All that come with the app."""
    places = sorted(place for place in examples.iterdir() if place.is_dir()) if examples.is_dir() else []
    return [run for place in places if (run := Runs.read(place)) is not None]


def inside(root: Path, path: str) -> Path:
    """The file of that path, which lies below `root` and is nobody's secret.

    Raises:
        HTTPException: 404, without a word on what lies elsewhere.
    """
    try:
        file = (root / path).resolve()
    except (OSError, ValueError, RuntimeError):
        raise HTTPException(404, "There is no such file.") from None
    top = root.resolve()
    parts = file.relative_to(top).parts if file.is_relative_to(top) else ()
    if not parts or parts[0] != "out":
        raise HTTPException(404, "There is no such file.")
    return file


def zipped(folder: Path) -> Iterator[bytes]:
    """The folder as a zip, piece by piece; links are left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(folder))
    buffer.seek(0)
    while piece := buffer.read(2**20):
        yield piece
