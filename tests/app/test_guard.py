"""What the server gives out, to whom: hosts, origins, paths, runs of others, the password, and Gradio's own routes."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from peft_compare.command import read
from peft_compare.drawing.drawer import Drawer
from peft_compare.drawing.requests import Layers
from peft_compare.refusals import RefusedError
from peft_compare.settings import Settings
from peft_runs.errors import UsageError
from tests.app.conftest import Served, serving


@pytest.fixture
def client(stand_in: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stand_in.url) as client:
        yield client


@pytest.fixture(scope="module")
def run(stand_in: Served) -> str:
    """A finished run with a file to give out and one that is nobody's business."""
    run = stand_in.runs.create("vision", "a run", "vision-peft", [], "somebody")  # type: ignore[attr-defined]
    run.finish("done")
    (run.out / "lora").mkdir(parents=True)
    (run.out / "report.html").write_text("<p>the report", encoding="utf-8")
    (run.out / "lora" / "adapter.safetensors").write_bytes(b"weights")
    (run.out / "away").symlink_to("/etc")
    return run.id


def test_files_of_a_run_are_given_to_who_knows_its_id(client: httpx.Client, run: str) -> None:
    report = client.get(f"/runs/{run}/files/out/report.html")
    assert (report.status_code, report.text) == (200, "<p>the report")
    assert "sandbox" in report.headers["content-security-policy"]
    weights = client.get(f"/runs/{run}/files/out/lora/adapter.safetensors")
    assert weights.content == b"weights"
    assert weights.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "{run}/files/request.json",
        "{run}/files/process.json",
        "{run}/files/log.txt",
        "{run}/files/out/../request.json",
        "{run}/files/out/%2e%2e/request.json",
        "{run}/files/out/..%2frequest.json",
        "{run}/files/%2fetc%2fpasswd",
        "{run}/files//etc/passwd",
        "{run}/files/out/away/passwd",
        "{run}/files/out/%00",
        "{run}/files/out",
        "{run}/zip/out/away",
        "{run}/zip/",
        "{run}/zip/..",
        "..%2f..%2fetc/files/passwd",
        ".deleted/files/out/report.html",
        "00000000000000000000000000000000/files/out/report.html",
    ],
)
def test_nothing_else_is_given_out(client: httpx.Client, run: str, path: str) -> None:
    assert client.get("/runs/" + path.format(run=run)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=pyproject.toml",
        "/gradio_api/file={runs}/{run}/request.json",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/monitoring",
        "/monitoring/summary",
        "/openapi.json",
        "/docs",
    ],
)
def test_gradios_own_ways_are_closed(client: httpx.Client, stand_in: Served, run: str, path: str) -> None:
    folder = stand_in.runs.folder  # type: ignore[attr-defined]
    assert client.get(path.format(runs=folder, run=run)).status_code in (403, 404)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_is_refused(client: httpx.Client, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/upload"])
def test_a_foreign_page_can_not_post(client: httpx.Client, headers: dict[str, str], path: str) -> None:
    assert client.post(path, json={}, headers=headers).status_code == 403


def test_a_browser_gets_a_name_once(client: httpx.Client) -> None:
    first = client.get("/")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "SameSite=Lax" in first.headers["set-cookie"]
    assert "set-cookie" not in client.get("/").headers


def test_no_frame_and_no_guessing(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")


def test_the_password_stands_before_everything(tmp_path: Path) -> None:
    with serving(tmp_path, password="correct horse") as served, httpx.Client(base_url=served.url) as client:
        for path in ("/", "/config", "/gradio_api/info", "/runs/digits/files/out/results.json"):
            assert client.get(path).status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        wrong = client.post("/login", data={"password": "wrong"}, headers={"accept": "text/html"})
        assert wrong.status_code == 401
        assert "not the password" in wrong.text
        assert client.post("/login", data={"password": "correct horse"}).status_code == 303
        assert client.get("/config").status_code == 200


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--host", "0.0.0.0"], {}, "which needs a password"),
        (["--host", "192.168.1.7"], {"PEFT_COMPARE_PASSWORD": ""}, "which needs a password"),
        (["--host", "0.0.0.0"], {"PEFT_COMPARE_PASSWORD": "correct horse"}, "--allow-host NAME"),
        (["--host", "::1"], {"PEFT_COMPARE_PASSWORD": "short"}, "at least 8 characters, found 5"),
        (["--password-file", "/nowhere/at/all"], {}, "cannot be read"),
    ],
)
def test_open_doors_are_refused(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], said: str
) -> None:
    monkeypatch.delenv("PEFT_COMPARE_PASSWORD", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RefusedError, match=said):
        read(words)


def test_by_default_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFT_COMPARE_PASSWORD", raising=False)
    settings, opens = read([])
    assert (settings.host, settings.password, opens) == ("127.0.0.1", None, False)
    assert settings.known_hosts == {"127.0.0.1", "localhost", "::1"}


def test_a_folder_of_the_server_is_not_for_visitors_from_elsewhere(tmp_path: Path) -> None:
    elsewhere, here = Settings(tmp_path, host="192.168.1.7"), Settings(tmp_path)
    for name in ("local-dir:/srv/model", str(tmp_path)):
        here.check_model(name)
        with pytest.raises(RefusedError, match="a folder of the machine that serves this page"):
            elsewhere.check_model(name)
        with pytest.raises(UsageError, match="a folder of the machine that serves this page"):
            Drawer(check=elsewhere.check_model).ask(Layers(name))
    for name in ("vit_mini", "mini_sd", "hf-hub:timm/vit", "owner/name"):
        elsewhere.check_model(name)
