"""SaRA's files: values and places, exact in another process, and refused on another base model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import diffusion_peft as dp
from peft_kernels.loading import load_adapter

from ..kernels.saved_adapters import edit, setting, structure
from .sara_models import adapted, batch, in_force, mixed, move, trained

TOKENS = batch()[0]


def saved(folder: Path, **fields: Any) -> PeftModel:
    model = adapted(**fields)
    move(model)
    model.save_pretrained(str(folder))
    return model


def loaded(folder: Path, base: torch.nn.Module | None = None) -> PeftModel:
    return load_adapter(base or mixed(), folder)


def test_a_file_holds_values_and_places_and_little_else(tmp_path: Path) -> None:
    model = saved(tmp_path, density=0.2)
    entries = sum(p.numel() for p in trained(model).values())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in tensors} == {"values", "index"}
    assert sum(t.nbytes for t in tensors.values()) == 8 * entries
    assert not any("frozen" in key for key in tensors)


@pytest.mark.parametrize(
    "fields", [{}, {"density": 0.1}, {"density": 0.1, "scope": "per_tensor"}, {"alpha": 0.5}], ids=str
)
def test_loaded_it_is_the_same_to_the_bit(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = saved(tmp_path, **fields)
    expected = in_force(model)
    for again in (loaded(tmp_path), PeftModel.from_pretrained(mixed(), str(tmp_path))):
        found = in_force(again)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert torch.equal(again(TOKENS), model(TOKENS))


def test_entries_frozen_by_the_second_selection_are_saved_with_their_trained_values(tmp_path: Path) -> None:
    model = adapted()
    optimiser = torch.optim.AdamW(trained(model).values(), 1e-2)
    allocator = dp.SaraAllocator(model, 2, optimiser)
    for step in range(2):
        model(TOKENS).square().sum().backward()
        optimiser.step()
        allocator.update_and_allocate(step)
    assert any(part.frozen is not None and part.frozen.any() for part in allocator.entries.values())
    model.save_pretrained(str(tmp_path))
    expected, found = in_force(model), in_force(loaded(tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_process_gives_the_same_outputs(tmp_path: Path) -> None:
    torch.save(saved(tmp_path)(TOKENS), tmp_path / "expected.pt")
    root = Path(__file__).parents[2]
    script = (
        "import sys, torch\nfrom tests.diffusion.test_sara_files import TOKENS, loaded\nfrom pathlib import Path\n"
        "folder = Path(sys.argv[1])\nassert torch.equal(loaded(folder)(TOKENS), torch.load(folder / 'expected.pt'))"
    )
    paths = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _one_other_value(model: torch.nn.Module) -> None:
    weight = model.get_parameter("up.weight")
    place = int((weight.abs() < 0.03).flatten().nonzero()[0])
    weight.data.view(-1)[place] *= 1.0001


@pytest.mark.parametrize("load", [loaded, lambda folder, base: PeftModel.from_pretrained(base, str(folder))])
def test_a_base_model_with_one_other_value_is_refused(tmp_path: Path, load: Any) -> None:
    saved(tmp_path)
    base = mixed()
    _one_other_value(base)
    before = structure(base)
    with pytest.raises(ValueError, match=r"entries of up.weight were selected in another base model: its float32"):
        load(tmp_path, base)
    if load is loaded:
        assert structure(base) == before


def test_a_value_that_was_not_selected_may_differ(tmp_path: Path) -> None:
    saved(tmp_path)
    base = mixed()
    weight = base.get_parameter("up.weight")
    place = int((weight.abs() > 0.05).flatten().nonzero()[0])
    weight.data.view(-1)[place] *= 2
    loaded(tmp_path, base)


@pytest.mark.parametrize(
    ("trained_in", "loaded_in", "fits"),
    [
        (torch.float32, torch.float16, True),
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.float16, False),
    ],
    ids=str,
)
def test_the_base_may_be_a_cast_of_the_one_it_was_trained_on(
    tmp_path: Path, trained_in: torch.dtype, loaded_in: torch.dtype, fits: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted(trained_in)
        move(model)
        model.save_pretrained(str(tmp_path))
        if not fits:
            with pytest.raises(ValueError, match="another base model"):
                loaded(tmp_path, mixed().to(loaded_in))
            return
        again = loaded(tmp_path, mixed().to(loaded_in))
    reference = mixed(trained_in)
    assert again(TOKENS).dtype == loaded_in
    difference = (again(TOKENS).double() - model(TOKENS).double()).abs().max()
    assert difference < 0.05 * (model(TOKENS).double() - reference(TOKENS).double()).abs().max()


def test_files_of_another_threshold_or_shape_name_the_tensor(tmp_path: Path) -> None:
    saved(tmp_path)
    entries = json.loads((tmp_path / "adapter_config.json").read_text())["plan"]["entries"]
    setting(tmp_path, plan={"entries": {**entries, "up.weight": entries["up.weight"] + 1}})
    with pytest.raises(ValueError, match=r"up\.sara_adapter\.entries\.weight.* has shape"):
        loaded(tmp_path)
    setting(tmp_path, plan={"entries": {**entries, "up.weight": 10**6}})
    with pytest.raises(ValueError, match=r"plan.entries\['up.weight'\] must be at most 5600"):
        loaded(tmp_path)


def test_places_out_of_order_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, lambda t: t.update({k: v.flip(0).contiguous() for k, v in t.items() if k.endswith(".index")}))
    with pytest.raises(ValueError, match="they must ascend"):
        loaded(tmp_path)


def test_a_plan_without_its_file_cannot_run(tmp_path: Path) -> None:
    saved(tmp_path)
    from peft import get_peft_model

    model = get_peft_model(mixed(), dp.SaraConfig.from_pretrained(str(tmp_path)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="Load the adapter that belongs to it"):
        model(TOKENS)
