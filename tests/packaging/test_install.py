"""A wheel and an editable install, each in an environment of its own: right names, right files, working commands.

The environments borrow the dependencies of the running one through a ``.pth`` file, so nothing is downloaded; the
project itself is not among what they borrow, since nested ``.pth`` files (its own editable install) are not read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed here")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"peft_kernels", "vision_peft", "diffusion_peft", "peft_runs", "peft_compare"}
EMBEDDED = sorted(path.parent.name for path in ROOT.glob("vision_peft/assets/*/model.safetensors"))


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout and give back what it printed."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by its own backend."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, ROOT, cwd=out)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="session", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a clean environment with the project installed."""
    home = tmp_path_factory.mktemp(request.param)
    venv.create(home, with_pip=False, symlinks=True)
    scheme = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    # Digits sort before "_": the finder that an editable install starts needs a borrowed module (editables).
    Path(scheme["purelib"], "00_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    what = ["--editable", str(ROOT)] if request.param == "editable" else [str(request.getfixturevalue("wheel"))]
    python = Path(scheme["scripts"], "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    run(*install, *what, cwd=home)
    return python.parent


def test_wheel_installs_no_other_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


def test_wheel_holds_recipes_weights_and_licence(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"peft_runs/configs/{path.relative_to(ROOT / 'configs')}" for path in ROOT.glob("configs/**/*.yaml")}
    assets = {str(path.relative_to(ROOT)) for path in ROOT.glob("*_peft/assets/**/*") if path.is_file()}
    assets = {name for name in assets if "__pycache__" not in name}
    assert recipes, "no recipe found in configs/"
    assert recipes | assets <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_command_works_from_a_foreign_folder(installed: Path, tmp_path: Path) -> None:
    assert "snell" in run(installed / "vision-peft", "methods", cwd=tmp_path)


def test_recipe_is_found_by_name(installed: Path, tmp_path: Path) -> None:
    printed = run(installed / "vision-peft", "train", "--recipe", "digits_snell", "--help", cwd=tmp_path)
    assert "sparsity" in printed


@pytest.mark.parametrize("model", EMBEDDED)
def test_embedded_weights_load(installed: Path, tmp_path: Path, model: str) -> None:
    code = f"import timm, vision_peft; timm.create_model({model!r}, pretrained=True, num_classes=7)"
    run(installed / "python", "-c", code, cwd=tmp_path)


def test_folders_of_the_repository_are_not_importable(installed: Path, tmp_path: Path) -> None:
    folders = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier())
    folders = [name for name in folders if name not in PACKAGES]
    code = f"import importlib.util as u; print([n for n in {folders} if u.find_spec(n)])"
    assert {"apps", "configs", "kernels", "tests"} <= set(folders)
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_package_comes_from_this_project(installed: Path, tmp_path: Path, package: str) -> None:
    code = f"import importlib.util as u; print(u.find_spec({package!r}).origin)"
    found = Path(run(installed / "python", "-c", code, cwd=tmp_path).strip())
    home = ROOT if found.is_relative_to(ROOT) else installed.parent
    assert found.is_relative_to(home)
    assert found.parent.name == package
