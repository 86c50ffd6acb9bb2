"""Searching for the layers that draw the text, on untrained pipelines of every kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, IFPipeline
from torch import Tensor, nn

import diffusion_peft as dp
from diffusion_peft.localization.generations import Generations, encoded_once
from diffusion_peft.localization.pairs import pairs_of
from tests.diffusion.tiny_pipelines import KINDS, SIZE, WIDTH, t5, t5_tokenizer, unet

PAIRS = [("a circle in red", "a star"), ("a star in blue", "a square"), ("a square", "a circle")]
DEEPFLOYD: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "attention_head_dim": 4,
    "cross_attention_norm": "group_norm",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "encoder_hid_dim": WIDTH,
    "cross_attention_dim": 2 * WIDTH,
    "resnet_skip_time_act": True,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_act_fn": "gelu",
}
LAYERS = {"if": 4, "sd1": 4, "sdxl": 4, "pixart": 2, "sd3": 2, "flux": 2}
SMALL: dict[str, Any] = {"steps": 2, "batch": 2, "settings": {"height": SIZE, "width": SIZE}}
EXTRA: dict[str, dict[str, Any]] = {"pixart": {"use_resolution_binning": False}}


def deepfloyd() -> DiffusionPipeline:
    """Adds noise of its own at every step."""
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=unet(**DEEPFLOYD),
        scheduler=DDPMScheduler(variance_type="learned_range"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipelines() -> dict[str, DiffusionPipeline]:
    torch.manual_seed(0)
    kinds = {**KINDS, "if": deepfloyd}
    made = {kind: kinds[kind]() for kind in LAYERS}
    for pipe in made.values():
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                module.eval()  # as loaded ones are: T5 drops out
    return made


def small(kind: str, **more: Any) -> dict[str, Any]:
    return {**SMALL, "settings": SMALL["settings"] | EXTRA.get(kind, {}), **more}


def one_word(images: Tensor) -> list[str]:
    return ["a star"] * len(images)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_scored(kind: str, pipelines: dict[str, Any]) -> None:
    pipe = pipelines[kind]
    before = {name: type(module) for name, module in pipe.components[part(pipe)].named_modules()}
    found = dp.localize_text_layers(pipe, PAIRS, **small(kind))
    assert found.indices == list(range(LAYERS[kind]))
    assert len(found.best(1)) == 1
    assert found.of()["ssim"] == pytest.approx(1)
    assert all(0 <= found.of(layer)["mse"] <= 255**2 for layer in found.indices)
    assert {name: type(module) for name, module in pipe.components[part(pipe)].named_modules()} == before


def part(pipe: Any) -> str:
    return "unet" if "unet" in pipe.components else "transformer"


def test_layers_together_are_scored_as_one_by_one(pipelines: dict[str, Any]) -> None:
    alone = dp.localize_text_layers(pipelines["sd3"], PAIRS, **small("sd3"))
    together = dp.localize_text_layers(pipelines["sd3"], PAIRS, at_once=2, **small("sd3"))
    for layer in alone.indices:
        assert alone.of(layer) == pytest.approx(together.of(layer), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_prompt_is_encoded_once(kind: str, pipelines: dict[str, Any]) -> None:
    pipe, seen = pipelines[kind], list[list[int]]()
    pairs, more = pairs_of(PAIRS[:2]), small(kind)["settings"]
    run = Generations(pipe, 2, 5.0, settings=more)
    expected = run.together(pairs, [0, 1], [(), (0,)])
    handle = pipe.text_encoder.register_forward_pre_hook(lambda module, args: seen.extend(args[0].tolist()))
    with handle, encoded_once(pipe):
        found = [run.together(pairs, [0, 1], [(), (0,)]) for _ in range(2)]
    for prompt in (prompt for pair in pairs for prompt in pair):
        tokens = pipe.tokenizer(prompt, padding="max_length", max_length=len(seen[0]), truncation=True).input_ids
        assert seen.count(tokens) == 1
    assert "encode_prompt" not in vars(pipe)
    for pictures, wanted in zip(found[0] + found[1], 2 * expected, strict=True):
        torch.testing.assert_close(pictures, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "if"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_states_put_in_do_what_the_target_beside_does(kind: str, guidance: float, pipelines: dict[str, Any]) -> None:
    pairs, sets = pairs_of(PAIRS), [(1,), (0, 2), ()]
    run = Generations(pipelines[kind], 3, guidance, start_step=1, heads={2: [1]}, settings=SMALL["settings"])
    _, *beside = run.together(pairs, [3, 4, 5], sets)
    _, source, states = run.plain(pairs, [3, 4, 5])
    assert states is not None
    assert states.shape[:2] == (1 + (guidance > 1), 3)
    *put_in, none = run.injected(pairs, [3, 4, 5], sets, states)
    changes = [(wanted - source).abs().max() for wanted in beside[:2]]
    for found, wanted, change in zip([*put_in, none], [*beside[:2], source], [*changes, max(changes)], strict=True):
        assert (found - wanted).abs().max() < 0.02 * change


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart"])
def test_the_target_runs_beside_where_its_text_sees_the_picture_or_is_masked(
    kind: str, pipelines: dict[str, Any]
) -> None:
    run = Generations(pipelines[kind], 2, 5.0, settings=small(kind)["settings"])
    assert run.plain(pairs_of(PAIRS), [3, 4, 5])[2] is None


@pytest.mark.parametrize("kind", ["sd1", "if"])
def test_the_same_text_changes_nothing(kind: str, pipelines: dict[str, Any]) -> None:
    pairs = pairs_of([("a star", "a star")])
    run = Generations(pipelines[kind], 2, 5.0, settings=SMALL["settings"])
    target, source, replaced = run.together(pairs, [3], [(), (1, 2)])
    assert torch.equal(source, target)
    assert torch.equal(source, replaced)


def test_another_text_changes_the_picture(pipelines: dict[str, Any]) -> None:
    pairs = pairs_of(PAIRS)
    run = Generations(pipelines["sd1"], 2, 5.0, settings=SMALL["settings"])
    _, source, replaced, more = run.together(pairs, [3, 4, 5], [(), (1,), (1, 2)])
    assert not torch.equal(source, replaced)
    assert not torch.equal(replaced, more)


def test_a_reader_and_further_metrics_are_scored(pipelines: dict[str, Any], tmp_path: Path) -> None:
    metrics: dict[str, Any] = {"bright": lambda found, source, target, pairs: found.mean((1, 2, 3))}
    found = dp.localize_text_layers(
        pipelines["sd1"], PAIRS, layers=[2], reader=one_word, metrics=metrics, **small("sd1")
    )
    scores = found.of(2)
    assert found.score == "f1_target"
    assert scores["precision_target"] == pytest.approx((1 + 0.5 + 0.5) / 3)  # a star, a square, a circle
    assert scores["letters_precision_target"] == pytest.approx((6 + 5 + 3) / 18, abs=1e-6)  # of "a star", the blank too
    assert 0 < scores["bright"] < 1
    found.save(tmp_path / "report.json")
    assert dp.Localization.load(tmp_path / "report.json").of(2) == scores


@pytest.mark.parametrize("words", [["go", "no"], ["go", "go", "no", "no"], ["go", "no", "so", "go", "up"]])
def test_words_are_exchanged(words: list[str]) -> None:
    pairs = pairs_of([f'number {number}: a sign "{word}"' for number, word in enumerate(words)])
    assert all(pair.source_text != pair.target_text for pair in pairs)
    assert sorted(pair.target_text for pair in pairs) == sorted(words)
    assert [pair.target.split('"')[0] for pair in pairs] == [pair.source.split('"')[0] for pair in pairs]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "must be a list of prompts"),
        ("a sign", "must be a list of prompts"),
        (["a sign"], "needs one text in quotes"),
        (['a "sign"', 'the "sign"', 'a "word"'], "cannot exchange them"),
        (['a "sign"', ("a", "b")], "all prompts or all"),
        ([("a", "b"), ("a", 3)], "must be two texts; found 3"),
    ],
)
def test_unusable_prompts_are_refused(prompts: Any, message: str, pipelines: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        dp.localize_text_layers(pipelines["sd1"], prompts)


def test_an_unknown_score_is_refused(pipelines: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="did you mean 'ssim_target'"):
        dp.localize_text_layers(pipelines["sd1"], PAIRS, score="ssim_targets")


class StopError(Exception):
    pass


class Keeper:
    """Keeps each report and stops the search after some calls."""

    def __init__(self, path: Path, *stops: int) -> None:
        self.path, self.stops, self.calls = path, stops, 0

    def __call__(self, report: dp.Localization, done: int, total: int) -> None:
        self.calls += 1
        assert done <= total == len(PAIRS) * (4 + 2)
        report.save(self.path)
        if self.calls in self.stops:
            raise StopError


def test_a_stopped_search_goes_on(pipelines: dict[str, Any], tmp_path: Path) -> None:
    asked: dict[str, Any] = small("sd1", batch=1, at_once=2, largest_set=3)
    whole = dp.localize_text_layers(pipelines["sd1"], PAIRS, **asked)
    kept = tmp_path / "report.json"
    told = Keeper(kept, 3, 8)  # among the layers, among their sets
    for _ in told.stops:
        with pytest.raises(StopError):
            dp.localize_text_layers(pipelines["sd1"], PAIRS, told=told, resume=before(kept), **asked)
    found = dp.localize_text_layers(pipelines["sd1"], PAIRS, told=told, resume=before(kept), **asked)
    assert told.calls == len(PAIRS) * (2 + 1)
    assert found == whole


def before(path: Path) -> dp.Localization | None:
    return dp.Localization.load(path) if path.exists() else None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 3}, "its steps are 2, now 3"),
        ({"layers": [0]}, "its names are"),
        ({"score": "ssim"}, "its score are 'ssim_target', now 'ssim'"),
    ],
)
def test_a_report_of_another_search_is_refused(
    changed: dict[str, Any], message: str, pipelines: dict[str, Any]
) -> None:
    asked = small("sd1", layers=[2])
    report = dp.localize_text_layers(pipelines["sd1"], PAIRS, **asked)
    with pytest.raises(ValueError, match=message):
        dp.localize_text_layers(pipelines["sd1"], PAIRS, **asked | changed, resume=report)


def test_sets_grow_while_they_gain() -> None:
    report = dp.Localization(names=["a", "b", "c"], indices=[0, 1, 2], score="f1")
    for layers, score in (((0,), 0.3), ((1,), 0.1), ((2,), 0.4), ((0, 2), 0.6), ((0, 1, 2), 0.6)):
        report.add(layers, {"f1": [score], "ssim": [1.0]})
    assert report.ranking() == [2, 0, 1]
    assert report.best_set() == [0, 2]
    assert report.best_set(gain=0.25) == [2]
