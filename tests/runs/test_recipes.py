"""Recipes: every one in the repository reads, and what is read is what stands there."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from peft_kernels.registry import methods
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION, VISION
from peft_runs.find import load_recipe, recipe_names
from peft_runs.read import differences, method_fields, read_recipe
from peft_runs.recipe import Recipe
from tests.runs.command import here

TASKS = {**VISION.tasks(), **DIFFUSION.tasks()}


def read(name: str | Path, *words: str) -> Recipe:
    return read_recipe(load_recipe(name), list(words), TASKS)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_reads_and_reads_back(name: str, tmp_path: Path) -> None:
    recipe = read(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    assert list(differences(recipe, read(path))) == []


def test_methods_on_digits_differ_in_method_and_optimiser_only() -> None:
    base = read("digits")
    named = [name for name in recipe_names() if name.startswith("digits_")]
    assert len(named) >= 8
    for name in named:
        assert all(key.startswith(("method.", "optim.")) for key, _, _ in differences(base, read(name)))


def test_command_line_lies_over_the_file() -> None:
    recipe = read("digits_snell", "--method.r", "16", "--optim.lr=2e-4", "--data.variation.flip", "0.5")
    assert recipe.method.name == "snell"
    assert (recipe.method.fields["r"], recipe.method.fields["sparsity"]) == (16, 0.5)
    assert (recipe.optim.lr, recipe.data.variation.flip, recipe.data.variation.crop_padding) == (2e-4, 0.5, 2)


def test_another_method_drops_the_files_fields() -> None:
    assert read("digits_snell", "--method.name", "lora").method.fields["r"] == 8
    assert "sparsity" not in read("digits_snell", "--method.name", "lora").method.fields
    assert read("digits_snell", "--method.name", "null").method.name is None


@pytest.mark.parametrize("method", methods())
def test_help_lists_every_setting_of_the_method(method: str, capsys: pytest.CaptureFixture) -> None:
    code, said, _ = here(capsys, "train", "--recipe", "digits", "--method.name", method, "--help")
    assert code == 0
    for field in dataclasses.fields(method_fields(method)):
        assert f"--method.{field.name}" in said
    assert "--run.epochs" in said
    assert "--data.variation.flip" in said


@pytest.mark.parametrize("method", methods())
def test_settings_are_plain_data(method: str) -> None:
    """No field names a module or class for somebody to import."""
    names = {field.name for field in dataclasses.fields(method_fields(method))}
    assert not names & {"megatron_config", "megatron_core", "auto_mapping", "peft_type"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: 3", "'run' must be a mapping"),
        ("- run", "must be a mapping of sections"),
        ("run: {epochs: [", "cannot be read"),
        ("run: {epochs: !!python/name:os.system }", "cannot be read"),
        ("optim: {class_path: os.system}", "unknown recipe key 'optim.class_path'"),
        ("model: {name: {class_path: os.system}}", "model.name"),
        ("base: nothing", "unknown recipe 'nothing'"),
        ("base: 3", "must name its base"),
    ],
)
def test_bad_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read(path)


def test_recipe_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(f"base: {path}")
    with pytest.raises(UsageError, match="its own base"):
        read(path)
