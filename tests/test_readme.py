"""The README's code runs as written, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def code_blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(python|bash)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(kind: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-euc", code]
    # Offline, as the suite runs: nothing in the README's code needs the hub.
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_code_block_runs_as_written(folder: Path) -> None:
    blocks = code_blocks()
    assert len(blocks) >= 6
    for kind, code in blocks:
        result = run(kind, code, folder)
        assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
    assert (folder / "photos.safetensors").stat().st_size > 1_000_000
    assert (folder / "ssf-photos" / "adapter_model.safetensors").exists()
