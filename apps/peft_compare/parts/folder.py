"""A button that takes a whole folder: the browser packs it into a zip and puts that where files are dropped."""

from pathlib import Path

PACK = (Path(__file__).with_name("folder.js")).read_text(encoding="utf-8")


def folder_field(target: str, label: str, most: int) -> str:
    """The button.

    Args:
        target: name of the element that takes files.
        most: bytes of a folder.
    """
    return (
        f'<div class="tools"><label class="plain-button">{label}<input type="file" webkitdirectory class="hidden" '
        f'data-target="{target}" data-most="{most}" aria-label="{label}"></label>'
        '<span class="quiet" role="status"></span></div>'
    )
