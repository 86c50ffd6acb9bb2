"""Two apps in one process: the end of one takes nothing from the other."""

import os
from pathlib import Path

from peft_compare.pages.diffusion_draw import PNG, keep
from peft_compare.server import App
from peft_compare.settings import Settings


class Drawn:
    """An event of the page: a picture that was drawn."""

    name, picture = "edges", PNG + "iVBORw0KGgo="


def test_what_is_drawn_is_kept_after_another_app_has_closed(tmp_path: Path) -> None:
    first, second = (App(Settings(runs=tmp_path / name)) for name in ("first", "second"))
    second.close()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_dir()
    kept = keep({}, Drawn())  # type: ignore[arg-type]
    assert Path(kept["edges"]).read_bytes() == b"\x89PNG\r\n\x1a\n"
    first.close()
