"""From choices on the Diffusion page to command lines, equal budgets, and sets of pictures that a visitor sends."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.data.folder import FolderPictures
from diffusion_peft.pipelines.opening import open_pipeline
from peft_compare import captioned_uploads as uploads
from peft_compare.diffusion_budget import solve
from peft_compare.diffusion_request import TASKS, Choice, offered, own_settings, words_of
from peft_compare.diffusion_sets import SetOfPictures, thumbnails
from peft_compare.refusals import RefusedError
from peft_compare.settings import Limits
from peft_compare.uploads import FOLDER
from peft_kernels.registry import methods
from peft_runs.compare_plan import make_plan, read_recipes
from peft_runs.families import DIFFUSION


def recipes(choice: Choice) -> dict:
    """Method → its recipe, read from the words as the command reads them."""
    words = words_of(choice)
    names = words[words.index("--methods") + 1].split(",")
    start = words.index("--seeds") + 2
    return read_recipes(make_plan(DIFFUSION, words[2], names, choice.seeds, words[start:], 1, None), DIFFUSION)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_becomes_a_comparison_as_it_stands(task: str) -> None:
    found = recipes(Choice(TASKS[task].first, task, epochs=2, judged=4))
    assert list(found) == list(TASKS[task].first)
    assert all(recipe.run.epochs == 2 for recipe in found.values())


def test_settings_of_one_method_are_its_own() -> None:
    choice = Choice(("lora", "loha"), sizes={"lora": 3}, rates={"lora": 0.02, "loha": 0.005})
    found = recipes(choice)
    assert found["lora"].method.fields["r"] == 3
    assert (found["lora"].optim.lr, found["loha"].optim.lr) == (0.02, 0.005)
    assert recipes(Choice(("lora",)))["lora"].optim.lr == own_settings("style", "lora")[2]


def test_equal_budgets_are_what_the_methods_then_train() -> None:
    shares = {share.method: share for share in solve("mini_sd", "style", ["lora", "snell", "bitfit", "sara"], 60_000)}
    assert shares["sara"].parameters == 60_000
    assert shares["bitfit"].field is None
    for name in ("lora", "snell"):
        share = shares[name]
        assert share.field == "r"
        fields = recipes(Choice((name,), budget=60_000))[name].method.fields
        model = dp.add_adapter(open_pipeline("mini_sd"), methods()[name].config(**fields))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == share.parameters
        assert abs(share.parameters - 60_000) < 15_000
    found = recipes(Choice(("lora", "sara"), budget=60_000))
    assert found["lora"].method.fields["r"] == shares["lora"].value
    assert found["sara"].method.fields["num_trainable"] == 60_000


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(()), "no method is chosen"),
        (Choice(("hipa",), "spelling"), "'hipa' cannot do this task"),
        (Choice(("lora",), pipeline="mini_sx"), "did you mean 'mini_sd'"),
        (Choice(("lora",), pipeline="/nowhere/at/all"), "no pipeline at"),
        (Choice(("lora",), epochs=0), "epochs must be from 1"),
        (Choice(("lora",), judged=1), "pictures to judge by"),
        (Choice(("lora",), "subject", subject=("sks fish", " ")), "name the subject"),
        (Choice(("lora",), sizes={"lora": 3}, extra=("--run.epoch", "3")), "epoch"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(choice: Choice, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        words_of(choice)


def test_methods_that_no_denoiser_takes_are_not_offered() -> None:
    assert {"lora", "sara", "snell", "difffit"} <= set(offered("style"))
    assert not {"linear_probe", "vpt", "pointgst"} & set(offered("style"))


def test_drawn_sets_show_their_pictures_and_captions() -> None:
    shown, count = thumbnails("style")
    assert count > len(shown) > 3
    assert shown[0][0].startswith("data:image/png;base64,")
    assert shown[0][1].startswith("neon style, ")


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((70, 90, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_zip_becomes_a_set_with_captions_that_can_be_written_anew(tmp_path: Path) -> None:
    rows = json.dumps({"file_name": "a.png", "text": "a grey  thing"})
    files = {"x/a.png": png(90), "x/metadata.jsonl": rows.encode(), "x/b_c.png": png(120), "x/d.png": png(200)}
    archive = packed(
        tmp_path / "set.zip",
        {**files, "x/d.txt": b"\xef\xbb\xbfa bright thing\n", "x/._d.png": b"", "__MACOSX/x/._a.png": b""},
    )
    found = uploads.accept(archive, tmp_path, Limits())
    assert found.captions == ["a grey thing", "b c", "a bright thing"]
    assert uploads.find(tmp_path, found.id) == found
    mine = SetOfPictures(tmp_path / FOLDER / found.id, found.names, ["one", "two", "three"])
    mine.write()
    read = FolderPictures(mine.root)
    assert [read.drawn((0, index)).caption for index in range(len(read))] == ["one", "two", "three"]
    [recipe] = recipes(Choice(("lora",), pictures=mine, epochs=2, judged=4)).values()
    assert recipe.data.root == str(mine.root)
    assert recipe.data.test_size == 1
    assert recipe.model.samples.prompts[:3] == ("one", "two", "three")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.png": png(1), "b.png": png(2)}, "at least 3"),
        ({"a.png": png(1), "b.png": png(2), "c.png": b"no picture"}, "no whole picture"),
        ({"../a.png": png(1), "b.png": png(2), "c.png": png(3)}, "leaves its folder"),
        ({**{f"{n}.png": png(n) for n in range(3)}, "metadata.jsonl": b'{"file": 1}'}, "expected"),
    ],
)
def test_a_zip_that_is_no_set_is_refused_and_nothing_is_kept(
    files: dict[str, bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=said):
        uploads.accept(packed(tmp_path / "set.zip", files), tmp_path, Limits())
    assert not list((tmp_path / FOLDER).iterdir())
