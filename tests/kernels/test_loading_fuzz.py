"""Whatever a file holds, loading ends with an adapter, or with one `AdapterError` and an untouched model."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_kernels.adapter_files import AdapterError
from peft_kernels.loading import load_adapter
from vision_peft import SnellConfig

from .saved_adapters import CONFIG, WEIGHTS, setting, structure
from .test_loading_peft import model, saved

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(width=16) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SNELL adapter of a tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    config: Any = SnellConfig(r=2, target_modules=["first", "second"], modules_to_save=["head"])
    saved(folder, config, torch.randn(3, 16))
    return folder


def load(folder: Path) -> None:
    plain = model()
    before = structure(plain)
    try:
        adapted = load_adapter(plain, folder)
    except AdapterError:
        assert structure(plain) == before
    else:
        assert torch.isfinite(adapted(torch.zeros(1, 16))).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_altered_bytes(adapter: Path, data: st.DataObject) -> None:
    content = bytearray((adapter / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(adapter / CONFIG, folder)
        (Path(folder) / WEIGHTS).write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
        load(Path(folder))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_altered_settings(adapter: Path, data: st.DataObject) -> None:
    known = sorted(json.loads((adapter / CONFIG).read_text()))
    changes = data.draw(st.dictionaries(st.sampled_from(known) | st.text(max_size=5), JSON, min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "adapter"
        shutil.copytree(adapter, folder)
        setting(folder, **changes)
        load(folder)
