"""Clouds as adapted models see them, their spectra, and what the Points page says of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vision_peft as vp
from peft_compare import points_view as view
from peft_compare.runs import Run, Runs
from peft_compare.viewing import UNKNOWN, VIEWS, view_file, view_test_clouds
from peft_kernels.data_errors import DataError
from tests.app.clouds import METHODS, comparison


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    """A finished comparison with its views, and its models."""
    run = Runs(tmp_path_factory.mktemp("runs")).create("points", "clouds", "vision-peft", ["compare"], "me")
    models = comparison(run.out)
    view_test_clouds(run.out)
    return run, models


def views(run: Run) -> view.Views:
    found = view.views_of(run)
    assert found is not None
    return found


def test_scores_are_those_of_the_models(finished: tuple[Run, dict[str, Any]]) -> None:
    run, models = finished
    told = views(run)
    assert told.points.shape == (4, 256, 3)
    assert [told.classes[label] for label in told.labels] == told.classes[:4]
    for method in METHODS:
        with torch.no_grad():
            expected = models[method](torch.from_numpy(told.points)).softmax(-1)
        found = torch.tensor([seen["scores"] for seen in told.methods[method]])
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)


def test_a_change_is_that_of_the_features(finished: tuple[Run, dict[str, Any]]) -> None:
    run, models = finished
    told = views(run)
    assert [seen["size"] for seen in told.methods["linear_probe"]] == [0.0] * 4
    model, cloud = models["pointgst"], torch.from_numpy(told.points[1])
    after = vp.view_cloud(model, cloud)
    with model.disable_adapter():
        before = vp.view_cloud(model, cloud)
    seen = told.methods["pointgst"][1]
    change = after.features - before.features
    assert seen["size"] == pytest.approx(float(change.norm() / before.features.norm()), rel=1e-4)
    assert len(seen["change"]) == 16
    assert sum(seen["change"]) == pytest.approx(1, abs=1e-3)


def test_a_cloud_of_a_visitor(finished: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = finished
    points = np.random.default_rng(0).normal(size=(40, 3)) * 100 + 7
    np.savetxt(tmp_path / "mine.xyz", points)
    view_file(tmp_path / "mine.xyz", run.out, tmp_path)
    told = json.loads((tmp_path / VIEWS).read_text())
    assert told["labels"] == [UNKNOWN]
    assert list(told["methods"]) == list(METHODS)
    (tmp_path / "alone").mkdir()
    view_file(tmp_path / "mine.xyz", None, tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / VIEWS).read_text())["methods"] == {}
    for name, data, said in (("a.npz", b"no zip", "no readable cloud"), ("a.pkl", b"", "clouds are read from")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=said):
            view_file(tmp_path / name, None, tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle=False"):
        view_file(tmp_path / "objects.npy", None, tmp_path)


def test_few_components_come_closer_to_the_cloud_the_more_there_are(finished: tuple[Run, dict[str, Any]]) -> None:
    told = views(finished[0])
    spectrum, energy = view.spectrum_of(told, 0)
    assert energy.sum().item() == pytest.approx(1, abs=1e-4)
    whole = view.cloud_figure(told, 0, len(spectrum.points))
    assert len(whole.data) == 1
    few = view.cloud_figure(told, 0, 8)
    assert [trace.name for trace in few.data] == ["the cloud", "8 components"]
    assert few.layout.uirevision == whole.layout.uirevision
    np.testing.assert_allclose(np.sort(whole.data[0].x), np.sort(spectrum.points[:, 0].numpy()), atol=1e-4)


def test_the_page_tells_classes_and_shares(finished: tuple[Run, dict[str, Any]]) -> None:
    told = views(finished[0])
    said = view.predictions(told, 0)
    assert "It is labelled <strong>bed</strong>" in said
    assert said.count("<li ") == 3 * len(METHODS)
    held = view.spectra(told, 0, 8)
    assert "of what pointgst changes" in held
    assert "linear_probe" not in held
    samples = view.views_of(None)
    assert samples is not None
    assert "No predictions yet." in view.predictions(samples, samples.fullest)
    assert view.spectra(samples, 0, 512).count("<figure") == 1


def test_no_views_are_none(tmp_path: Path) -> None:
    run = Runs(tmp_path).create("points", "clouds", "vision-peft", ["compare"], "me")
    assert view.views_of(run) is None
