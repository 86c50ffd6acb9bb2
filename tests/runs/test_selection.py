"""Pictures of what a method chose to train: every cell stands for its tensor, and the report shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from matplotlib.figure import Figure
from peft import get_peft_model
from PIL import Image
from torch import nn

import vision_peft as vp
from peft_kernels.budget import Plan
from peft_runs import selection_figure
from peft_runs.report_choices import choices
from peft_runs.selection import SELECTION, plan_sizes
from peft_runs.selection_figure import draw_allocation, draw_plan
from peft_runs.selection_grid import grid_of

SIZES: dict[str, tuple[int, ...]] = {"patch_embed.proj": (64, 48)}
for _block in range(4):
    _place = f"blocks.{_block}"
    SIZES |= {f"{_place}.norm1.weight": (64,), f"{_place}.norm1.bias": (64,)}
    SIZES |= {f"{_place}.attn.qkv.{letter}": (64, 64) for letter in "qkv"}
    SIZES |= {f"{_place}.attn.proj": (64, 64), f"{_place}.mlp.fc1": (256, 64), f"{_place}.mlp.fc2": (64, 256)}
SPT = Plan(
    ranks={"blocks.0.attn.qkv.q": 4, "blocks.3.mlp.fc1": 2},
    entries={"blocks.0.attn.proj": 41, "blocks.2.mlp.fc2": 8000},
    full=["blocks.0.norm1.weight"],
)
GATES = Plan(sparsity={name: 0.25 + 0.5 * (place % 2) for place, name in enumerate(SIZES) if ".attn." in name})


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    written: list[Figure] = []
    save: Callable[..., None] = selection_figure.save

    def note(figure: Figure, path: Path) -> None:
        written.append(figure)
        save(figure, path)

    monkeypatch.setattr(selection_figure, "save", note)
    return written


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def ticks(figure: Figure, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def looks(path: Path) -> bool:
    """Whether there is a picture of some size with more than its ground in it."""
    with Image.open(path) as picture:
        return min(picture.size) > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_plan_of_ranks_entries_and_whole_tensors(tmp_path: Path, figures: list[Figure]) -> None:
    draw_plan(SPT, SIZES, tmp_path / "deeper" / "plan.png", "SPT")
    assert looks(tmp_path / "deeper" / "plan.png")
    [figure] = figures
    assert words(figure) == ["all", "r 4", "1.0%", "49%", "r 2"]
    assert ticks(figure, "y") == ["0", "1", "2", "3"]  # the patches, outside of blocks, were not chosen
    assert ticks(figure, "x") == ["norm1.weight", "q", "k", "v", "proj", "fc1", "fc2"]
    numbers = 4 * (64 + 64) + 2 * (256 + 64) + 64, 41 + 8000
    said = figure.axes[1].get_xlabel()
    assert f"{sum(numbers):,} trained numbers" in said
    assert f"structured {numbers[0]:,} (13%), single entries {numbers[1]:,} (87%)" in said


def test_a_plan_of_gates(tmp_path: Path, figures: list[Figure]) -> None:
    draw_plan(GATES, {name: SIZES[name] for name in GATES.sparsity}, tmp_path / "plan.png", "SNELLA")
    assert looks(tmp_path / "plan.png")
    [figure] = figures
    assert sorted(words(figure)) == ["25%"] * 8 + ["75%"] * 8
    assert figure.axes[1].get_xlabel() == f"{8 * 4096:,} of {16 * 4096:,} entries change (50%)"


def test_an_empty_plan_is_drawn_too(tmp_path: Path, figures: list[Figure]) -> None:
    draw_plan(Plan(), SIZES, tmp_path / "plan.png", "nothing")
    assert words(figures[0]) == []


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'blocks.0.attn.qkv.x', which is not there .did you mean 'blocks.0.attn.qkv."
    ):
        draw_plan(Plan(ranks={"blocks.0.attn.qkv.x": 2}), SIZES, tmp_path / "plan.png", "")


def test_blocks_go_down_and_kinds_across() -> None:
    grid = grid_of(SIZES)
    assert grid.row_labels == ["–", "0", "1", "2", "3"]
    assert grid.column_labels[1:5] == ["norm1.weight", "norm1.bias", "q", "k"]
    assert grid.places["blocks.2.mlp.fc1"] == (3, grid.columns.index("mlp.fc1"))
    unet = ["down_blocks.0.attentions.1.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0"]
    grid = grid_of(f"{block}.{kind}" for block in unet for kind in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"))
    assert grid.row_labels == ["d0 a1 t0", "m a0 t0"]
    assert grid_of(["norm", "blocks.blocks.0.qkv", "blocks.blocks.1.qkv"]).row_labels == ["–", "0", "1"]
    assert grid.column_labels == ["attn1.to_out.0", "attn2.to_out.0", "net.2"]


def history(rounds: int) -> list[dict[str, Any]]:
    names = [name for name in SIZES if ".attn." in name]
    return [
        {
            "round": turn,
            "kept": dict.fromkeys(names, 4096 // turn),
            "sparsity": dict.fromkeys(names, 1 - 1 / turn),
        }
        for turn in range(1, rounds + 1)
    ]


@pytest.mark.parametrize("rounds", [1, 2, 12])
def test_a_budget_over_time(rounds: int, tmp_path: Path, figures: list[Figure]) -> None:
    draw_allocation(history(rounds), tmp_path / "allocation.png", "SNELLA")
    assert looks(tmp_path / "allocation.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert [title for title in titles if title] == ["q", "k", "v", "proj"]
    drawn = figures[0].axes[1].collections[0].get_array()
    assert np.asarray(drawn).reshape(4, rounds)[0].tolist() == pytest.approx([1 / (1 + turn) for turn in range(rounds)])


def test_a_run_that_divided_nothing_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no reallocation"):
        draw_allocation([], tmp_path / "allocation.png", "")


def test_sizes_are_those_under_the_adapters() -> None:
    def vit() -> nn.Module:
        fields: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return timm.create_model("vit_tiny_patch16_224", num_classes=3, **fields)

    adapted = get_peft_model(vit(), vp.SnellaConfig(r=2))  # type: ignore[arg-type]
    plan = Plan(
        ranks={"blocks.0.attn.qkv.q": 2}, entries={"blocks.1.mlp.fc1.weight": 3}, full=["blocks.0.norm1.weight"]
    )
    for model in (vit(), adapted):
        sizes = plan_sizes(model, plan)
        plan.check({name: int(np.prod(shape)) for name, shape in sizes.items()})
        assert sizes["blocks.0.attn.qkv.q"] == sizes["blocks.0.attn.qkv.v"] == (24, 24)
        assert sizes["blocks.1.mlp.fc1.weight"] == sizes["blocks.0.mlp.fc1.weight"] == (96, 24)
        assert sizes["blocks.1.attn.qkv.k"] == (24, 24)
        assert sizes["blocks.1.mlp.fc2"] == (24, 96)
        assert sizes["blocks.0.norm1.weight"] == (24,)
    assert not [name for name in plan_sizes(adapted, plan) if "snella" in name or "head" in name]


def test_row_blocks_go_by_module_or_by_tensor_as_the_plan_names_them() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    sizes = plan_sizes(model, Plan(ranks={"blocks.0.attn.qkv.v.weight": 2}, full=["blocks.1.attn.qkv.q.bias"]))
    assert (sizes["blocks.1.attn.qkv.k.weight"], sizes["blocks.0.attn.qkv.v.bias"]) == ((24, 24), (24,))
    assert plan_sizes(model, Plan(sparsity={"blocks.0.attn.qkv.v": 0.2}))["blocks.1.attn.qkv.q"] == (24, 24)


def test_the_report_takes_the_pictures_that_runs_left(tmp_path: Path) -> None:
    from tests.runs.test_report import results

    of_three = results(2)
    assert choices(of_three, tmp_path) == []
    run = tmp_path / of_three.finished[1].runs[0].place
    draw_plan(SPT, SIZES, run / SELECTION, "SPT")
    [choice] = choices(of_three, tmp_path)
    assert choice.method == of_three.finished[1].method
    assert choice.pictures[0][0].startswith("data:image/png;base64,iVBOR")
