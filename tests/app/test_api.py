"""The app used by a program: a real comparison started by name, its result, and its adapter loaded through PEFT."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import timm
from gradio_client import Client
from gradio_client.exceptions import AppError
from peft import PeftModel

import vision_peft  # noqa: F401 (registers vit_mini)
from peft_compare.step_times import estimate
from peft_runs.families import VISION
from tests.app.conftest import Served, until

TINY = "--model.pretrained false --data.train_size 60 --optim.batch_size 20"


@pytest.fixture(scope="module")
def client(real: Served) -> Iterator[Client]:
    client = Client(real.url, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def done(client: Client, real: Served) -> str:
    """The id of a comparison that was started by name and is done."""
    begun = client.predict("linear_probe", epochs=2, settings=TINY, api_name="/start")
    run = real.runs.find(begun["run"])  # type: ignore[attr-defined]
    until(lambda: run.state not in ("queued", "running"), 900)
    assert run.state == "done", run.end
    return run.id


def test_a_comparison_started_by_name_gives_its_record(client: Client, real: Served, done: str) -> None:
    result = client.predict(done, api_name="/result")
    run = real.runs.find(done)  # type: ignore[attr-defined]
    assert result == json.loads((run.out / "results.json").read_text(encoding="utf-8"))
    [row] = result["rows"]
    assert (row["method"], row["trainable_parameters"]) == ("linear_probe", 1290)
    state = client.predict(done, api_name="/state")
    assert (state["state"], state["lanes"][0]["stage"], state["lanes"][0]["step"]) == ("done", "done", 6)
    assert state["command"].startswith("vision-peft compare --recipe digits --methods linear_probe --seeds 1")


def test_its_adapter_is_downloaded_and_loads_through_peft(real: Served, done: str, tmp_path: Path) -> None:
    answer = httpx.get(f"{real.url}/runs/{done}/zip/out/linear_probe/seed-0/adapter")
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    base = timm.create_model("vit_mini", num_classes=10)
    model = PeftModel.from_pretrained(base, str(tmp_path))
    assert sum(p.numel() for name, p in model.named_parameters() if "modules_to_save" in name) == 1290


def test_what_the_page_shows_was_worked_out(real: Served, done: str) -> None:
    shown = httpx.get(f"{real.url}/runs/{done}/files/out/shown.json").json()
    assert (len(shown["classes"]), len(shown["labels"]), shown["tiles"]) == (10, 797, 797)
    assert sum(map(sum, shown["where"]["cells"]["linear_probe"])) == 1290


def test_how_long_it_takes_is_known_from_then_on(real: Served, done: str) -> None:
    run = real.runs.find(done)  # type: ignore[attr-defined]
    found = estimate(run.path.parent, VISION, run.request.words)
    result = json.loads((run.out / "linear_probe" / "seed-0" / "result.json").read_text(encoding="utf-8"))
    assert found.whole
    assert found.seconds is not None
    assert found.seconds > 6 * result["step_seconds_median"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lorra",), "there is no method 'lorra'"),
        (("lora", "vit_mini", 0), "epochs must be from 1 to 500, found 0"),
        (("lora", "vit_mini", 1, 1, 0, "--data.root /etc"), "--data.root cannot be set from here"),
        (("lora", "vit_mini", 1, 1, 0, "--lora.data.root=/etc"), "--lora.data.root cannot be set from here"),
        (("lora", "vit_mini", 1, 1, 0, "--model.weights /etc/passwd"), "--model.weights cannot be set from here"),
        (("lora", "vit_mini", 1, 1, 0, "--optim.lrr 3"), "unknown recipe key 'optim.lrr'"),
        (("lora", "vit_mini", 1, 1, 0, "; touch stray"), "';' is not understood"),
    ],
)
def test_what_is_refused_is_said(client: Client, words: tuple, said: str) -> None:
    with pytest.raises(AppError, match=said):
        client.predict(*words, api_name="/start")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("snell", "one_step"), "'snell' cannot do this task; methods for it are hipa, lora"),
        (("lora", "stile"), "there is no task 'stile'"),
        (("lora", "style", "/etc"), "embedded are mini_sd"),
        (("lora", "style", "mini_sd", 2, 1, 4, 0, "--data.root /etc"), "--data.root cannot be set from here"),
    ],
)
def test_what_is_refused_of_a_pipeline_is_said(client: Client, words: tuple, said: str) -> None:
    with pytest.raises(AppError, match=said):
        client.predict(*words, api_name="/start_diffusion")


def test_a_comparison_of_a_pipeline_is_started_and_cancelled_by_name(client: Client) -> None:
    begun = client.predict("lora,sara", "style", "mini_sd", 3, 1, 4, api_name="/start_diffusion")
    assert begun["command"].startswith("diffusion-peft compare --recipe style --methods lora,sara --seeds 1")
    assert [lane["method"] for lane in begun["lanes"]] == ["lora", "sara"]
    with pytest.raises(AppError, match="the run has no adapters to draw with yet"):
        client.predict(begun["run"], "red heart", api_name="/draw")
    assert client.predict(begun["run"], api_name="/cancel")["state"] == "cancelled"


@pytest.mark.parametrize("name", ["/state", "/result", "/cancel"])
def test_nobody_elses_run_is_found_by_guessing(client: Client, name: str) -> None:
    for guess in ("0" * 32, "../../etc", ""):
        with pytest.raises(AppError, match="there is no such run"):
            client.predict(guess, api_name=name)


def test_a_run_of_a_browser_is_not_cancelled_by_a_program(client: Client, real: Served) -> None:
    run = real.runs.create("vision", "a run", "vision-peft", ["compare"], "somebody")  # type: ignore[attr-defined]
    with pytest.raises(AppError, match="started in another browser"):
        client.predict(run.id, api_name="/cancel")


def test_the_list_of_functions_holds_no_events_of_the_page(client: Client) -> None:
    known = client.view_api(return_format="dict", print_info=False)
    assert isinstance(known, dict)
    names = {"/start", "/start_diffusion", "/state", "/result", "/draw", "/cancel"}
    assert set(known["named_endpoints"]) == names
