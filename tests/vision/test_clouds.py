"""Clouds from every source: generated from seeds, read from files, prepared the same whoever prepares them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from peft_kernels.data_errors import DataError
from vision_peft.data.cloud_files import read_cloud
from vision_peft.data.clouds import CloudVariation, PreparedClouds, open_clouds
from vision_peft.data.shapes.changes import normalised, seen
from vision_peft.data.shapes.families import FAMILIES
from vision_peft.data.shapes.objects import OBJECTS
from vision_peft.data.shapes.patches import box, height, revolved, sample


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ["scans", "surfaces"])
def test_generated_clouds_come_from_their_seed(name: str) -> None:
    one, again = (open_clouds(name, None, "train", size=60, points=128, seed=3) for _ in range(2))
    for index in range(60):
        cloud = one.cloud(index)
        assert (cloud.shape, cloud.dtype) == ((128, 3), np.float32)
        assert np.abs(cloud.mean(0)).max() < 1e-5
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(cloud, again.cloud(index))
    assert set(one.labels) == set(range(len(one.classes)))
    for other in (("train", 4), ("test", 3)):
        cloud = open_clouds(name, None, other[0], size=1, points=128, seed=other[1]).cloud(0)
        assert not np.allclose(cloud, one.cloud(0))


def test_there_are_tens_of_families_and_fifteen_objects() -> None:
    assert len(FAMILIES) >= 30
    assert len(OBJECTS) == 15


@pytest.mark.parametrize("name", [*FAMILIES, *OBJECTS])
def test_surfaces_have_points_everywhere(name: str) -> None:
    for seed in range(3):
        points = sample({**FAMILIES, **OBJECTS}[name](np.random.default_rng(seed)), 200, rng())
        assert np.isfinite(points).all()
        assert len(np.unique(points, axis=0)) == 200


def test_points_are_uniform_in_area() -> None:
    sphere = sample([revolved(lambda t: np.stack([np.sin(np.pi * t), np.cos(np.pi * t)], 1))], 4000, rng())
    np.testing.assert_allclose(np.histogram(sphere[:, 2], 4, (-1, 1))[0] / 4000, 0.25, atol=0.03)
    faces = sample(box((2, 1, 1)), 5000, rng())
    assert np.isclose(np.abs(faces[:, 0]), 1).mean() == pytest.approx(0.2, abs=0.03)  # 2 of 10 units of area


def test_a_camera_sees_the_front_of_a_box_alone() -> None:
    points = sample(box((1, 1, 1)), 3000, rng())
    front = seen(points, azimuth=0.0, elevation=0.0)
    assert front[points[:, 0] > 0.499].mean() > 0.9
    assert front[points[:, 0] < -0.499].mean() < 0.1


def test_a_wall_hides_what_stands_behind_it() -> None:
    wall = sample([height(lambda x, y: 0 * x)], 3000, rng())[:, [2, 0, 1]] + np.array((2.0, 0, 0))
    thing = rng().uniform(-0.5, 0.5, (500, 3))
    assert seen(np.concatenate([wall, thing]), 0.0, 0.0)[3000:].mean() < 0.05


MESHES = Path(__file__).parents[2].parent / "shared" / "data" / "mesh_points.npz"


def test_instances_are_views_of_given_things(tmp_path: Path) -> None:
    things: dict[str, Any] = {
        "cube": rng().uniform(-1, 1, (900, 3)),
        "rod": rng().uniform(-1, 1, (900, 3)) * (0.05, 1, 0.05),
    }
    np.savez(tmp_path / "things.npz", **things)
    (tmp_path / "folder").mkdir()
    for name, points in things.items():
        np.savetxt(tmp_path / "folder" / f"{name}.xyz", points)
    one = open_clouds("instances", tmp_path / "things.npz", "train", size=4, points=128)
    other = open_clouds("instances", tmp_path / "folder", "train", size=4, points=128)
    assert (list(one.classes), one.labels.tolist()) == (["cube", "rod"], [0, 1, 0, 1])
    for index in range(4):
        np.testing.assert_allclose(one.cloud(index), other.cloud(index), atol=1e-4)
        assert one.cloud(index).shape == (128, 3)
    assert not np.allclose(one.cloud(0), one.cloud(2))
    assert not np.allclose(
        one.cloud(0), open_clouds("instances", tmp_path / "folder", "test", size=1, points=128).cloud(0)
    )


@pytest.mark.parametrize("name", ["things.npz", "empty", "damaged.npz"])
def test_instances_of_nothing_are_refused(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "things.npz", one=rng().normal(size=(9, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"PK junk")
    with pytest.raises(DataError, match=rf"{name} has [01]$|{name} is no readable npz of clouds"):
        open_clouds("instances", tmp_path / name, "train", size=2, points=16)


@pytest.mark.skipif(not MESHES.is_file(), reason="../shared/data/mesh_points.npz is not here")
def test_sixteen_real_models_are_told_apart_by_name() -> None:
    clouds = open_clouds("instances", MESHES, "test", size=16, points=256)
    assert len(clouds.classes) == 16
    assert "stanford-bunny" in clouds.classes
    assert all(np.isfinite(clouds.cloud(index)).all() for index in range(16))


# --- files ------------------------------------------------------------------------------------------------------------
CLOUD = np.random.default_rng(1).normal(size=(50, 3)) + 3
TETRAHEDRON = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


def write(path: Path) -> Path:
    """``CLOUD`` in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, CLOUD)
    elif path.suffix == ".npz":
        np.savez(path, normals=CLOUD[:, ::-1], points=CLOUD)
    else:
        np.savetxt(path, np.concatenate([CLOUD, CLOUD], 1), delimiter="," if path.suffix in (".txt", ".csv") else " ")
    return path


def read(path: Path) -> np.ndarray:
    return read_cloud(path, path.read_bytes)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".txt", ".csv", ".xyz", ".pts"])
def test_arrays_and_text(ending: str, tmp_path: Path) -> None:
    np.testing.assert_allclose(read(write(tmp_path / f"x{ending}")), CLOUD, rtol=1e-12)


def test_meshes_are_sampled_on_their_faces(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    (tmp_path / "x.off").write_text(TETRAHEDRON)
    points = read(tmp_path / "x.off")
    assert points.shape == (8192, 3)
    np.testing.assert_array_equal(points, read(tmp_path / "x.off"))
    on_a_face = (np.abs(points) < 1e-6).any(1) | (np.abs(points.sum(1) - 1) < 1e-6)
    assert on_a_face.all()
    slanted = 3**0.5 / (3 + 3**0.5)  # its share of the area
    assert (np.abs(points.sum(1) - 1) < 1e-6).mean() == pytest.approx(slanted, abs=0.03)


@pytest.mark.parametrize("ending", [".ply", ".off", ".obj", ".stl"])
def test_meshes_as_trimesh_writes_them(ending: str, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((2, 4, 6)).export(tmp_path / f"x{ending}")
    points = read(tmp_path / f"x{ending}")
    assert points.shape == (8192, 3)
    np.testing.assert_allclose(np.abs(points).max(0), [1, 2, 3], atol=1e-6)
    assert (np.abs(np.abs(points) - [1, 2, 3]) < 1e-6).any(1).all()


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_ply_of_points_alone(encoding: str, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    (tmp_path / "x.ply").write_bytes(trimesh.PointCloud(CLOUD).export(file_type="ply", encoding=encoding))
    np.testing.assert_allclose(read(tmp_path / "x.ply"), CLOUD, rtol=1e-5)


@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_laser_scans_as_laspy_writes_them(ending: str, tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    if ending == ".laz":
        pytest.importorskip("lazrs")
    scan = laspy.create(point_format=3)
    scan.header.scales = [1e-4] * 3
    scan.x, scan.y, scan.z = CLOUD.T
    scan.write(str(tmp_path / f"x{ending}"))
    np.testing.assert_allclose(read(tmp_path / f"x{ending}"), CLOUD, atol=1e-4)


@pytest.mark.parametrize("ending", [".ply", ".obj", ".las"])
def test_cut_off_files_are_named(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("laspy" if ending == ".las" else "trimesh")
    (tmp_path / f"x{ending}").write_bytes(b"")
    with pytest.raises(DataError, match=rf"x\{ending}"):
        read(tmp_path / f"x{ending}")


def test_meshes_without_a_reader_say_which(tmp_path: Path) -> None:
    if importlib.util.find_spec("trimesh"):
        pytest.skip("trimesh is installed")
    (tmp_path / "x.off").write_text(TETRAHEDRON)
    with pytest.raises(DataError, match=r"x\.off is read with trimesh, which is not installed: pip install trimesh"):
        read(tmp_path / "x.off")


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.txt", b"", r"x\.txt: expected points \[N, 3 or more\], at least one"),
    "two columns": ("x.txt", b"1 2\n3 4\n", r"found \[2, 2\]"),
    "text": ("x.xyz", b"one two three\n", r"x\.xyz is no readable cloud"),
    "NaN": ("x.csv", b"1,2,3\nnan,0,0\n", r"x\.csv: 1 of 2 points hold NaN"),
    "a pickle": ("x.npy", b"\x93NUMPY junk", r"x\.npy is no readable cloud"),
    "no format": ("x.docx", b"", r"clouds are read from .*found \.docx"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_named(case: str, tmp_path: Path) -> None:
    name, data, message = BAD[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_objects_in_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no readable cloud"):
        read(tmp_path / "x.npy")


def test_folders_of_class_folders(tmp_path: Path) -> None:
    for name in ("train/b/1.npz", "train/a/1.npy", "train/a/2.txt", "test/b/1.xyz"):
        write(tmp_path / name)
    (tmp_path / "train" / "a" / "readme.md").write_text("no cloud")
    train = open_clouds("folder", tmp_path, "train")
    assert (train.classes, train.labels.tolist()) == (["a", "b"], [0, 0, 1])
    np.testing.assert_array_equal(train.cloud(0), normalised(CLOUD))
    test = open_clouds("folder", tmp_path, "test", list(train.classes))
    assert test.labels.tolist() == [1]


def test_modelnet40(tmp_path: Path) -> None:
    root = tmp_path / "modelnet40_normal_resampled"
    write(root / "night_stand" / "night_stand_0001.txt")
    (root / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    (root / "modelnet40_train.txt").write_text("night_stand_0001\nchair_0007\n")
    clouds = open_clouds("modelnet40", tmp_path, "train")
    assert (clouds.classes, clouds.labels.tolist()) == (["chair", "night_stand"], [1, 0])
    np.testing.assert_array_equal(clouds.cloud(0), normalised(CLOUD))
    with pytest.raises(DataError, match=r"chair_0007\.txt is missing"):
        clouds.cloud(1)
    (root / "modelnet40_test.txt").write_text("sofa_0001\n")
    with pytest.raises(DataError, match="'sofa_0001' is of no class"):
        open_clouds("modelnet40", tmp_path, "test")


def test_scanobjectnn(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    data = np.random.default_rng(0).normal(size=(3, 2048, 3)).astype(np.float32)
    (tmp_path / "main_split_nobg").mkdir()
    with h5py.File(tmp_path / "main_split_nobg" / "training_objectdataset.h5", "w") as file:
        file["data"], file["label"] = data, np.array([0, 14, 2])
    clouds = open_clouds("scanobjectnn/obj_only", tmp_path, "train")
    assert (clouds.labels.tolist(), len(clouds.classes)) == ([0, 14, 2], 15)
    np.testing.assert_array_equal(clouds.cloud(1), data[1])  # as stored


def test_modelnet40_in_h5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    data = np.random.default_rng(0).normal(size=(3, 2048, 3)).astype(np.float32)
    root = tmp_path / "modelnet40_ply_hdf5_2048"
    root.mkdir()
    (root / "shape_names.txt").write_text("airplane\nbathtub\n")
    for part, labels in (("train0", [[1], [0]]), ("train1", [[1]]), ("test0", [[2]])):
        with h5py.File(root / f"ply_data_{part}.h5", "w") as file:
            file["data"], file["label"] = data[-len(labels) :], np.array(labels, dtype=np.uint8)
    clouds = open_clouds("modelnet40_h5", tmp_path, "train")
    assert (clouds.classes, clouds.labels.tolist()) == (["airplane", "bathtub"], [1, 0, 1])
    np.testing.assert_array_equal(clouds.cloud(2), normalised(data[-1]))
    with pytest.raises(DataError, match="has 2 classes; a label is of none"):
        open_clouds("modelnet40_h5", tmp_path, "test")
    with h5py.File(root / "ply_data_test0.h5", "w") as file:
        file["data"], file["label"] = data[..., :2], np.zeros(3)
    with pytest.raises(DataError, match=r"expected data \[n, points, 3\] and label \[n\]; found \[3, 2048, 2\]"):
        open_clouds("modelnet40_h5", tmp_path, "test")
    (root / "ply_data_test0.h5").unlink()
    with pytest.raises(DataError, match=r"has no ply_data_test\*\.h5"):
        open_clouds("modelnet40_h5", root, "test")


@pytest.mark.parametrize(
    ("name", "root", "split", "message"),
    [
        ("scan", None, "train", "unknown clouds 'scan' \\(did you mean 'scans'\\?\\)"),
        ("scanobjectnn/pb_t50", Path("."), "train", "did you mean 'pb_t50_rs'"),
        ("scanobjectnn/obj_bg", Path("nowhere"), "train", "looked for nowhere/main_split/training_objectdataset.h5"),
        ("modelnet40", Path("nowhere"), "train", "modelnet40_shape_names.txt is missing"),
        ("modelnet40", None, "train", "add --data.root FOLDER"),
        ("scans", None, "val", "unknown part of the generated clouds 'val'"),
    ],
)
def test_what_is_not_there_is_told(name: str, root: Path | None, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_clouds(name, root, split)


# --- as the model takes them ------------------------------------------------------------------------------------------
VARIED = CloudVariation(scale=0.5, shift=0.2, rotate=True, jitter=0.01)


def test_variation_is_the_same_whoever_prepares_it() -> None:
    data = PreparedClouds(open_clouds("scans", None, "train", size=30, points=256), 128, VARIED, seed=5)
    keys = [(epoch, index) for epoch in range(2) for index in range(30)]
    alone = [data[key]["points"] for key in keys]
    workers = DataLoader(data, batch_size=None, sampler=keys, num_workers=1)  # type: ignore[arg-type]
    for one, other in zip(alone, workers, strict=True):
        torch.testing.assert_close(one, other["points"], rtol=0, atol=0)
    assert alone[0].shape == (128, 3)
    assert not torch.allclose(alone[0], alone[30])


def test_evaluation_takes_the_farthest_points_and_training_some_of_them() -> None:
    clouds = open_clouds("scans", None, "test", size=30, points=512)
    test = PreparedClouds(clouds, 128, None, seed=0)
    train = PreparedClouds(clouds, 128, CloudVariation(), seed=0)
    stored = {tuple(point) for point in clouds.cloud(0).tolist()}
    assert {tuple(point) for point in test[0, 0]["points"].tolist()} <= stored
    torch.testing.assert_close(test[0, 0]["points"], test[9, 0]["points"], rtol=0, atol=0)
    drawn = {tuple(point) for point in train[0, 0]["points"].tolist()}
    assert len(drawn) == 128
    assert drawn <= {tuple(point) for point in train.clouds.cloud(0).tolist()} <= stored
    assert len(train.clouds.cloud(0)) == 150


@pytest.mark.parametrize("variation", [None, CloudVariation()], ids=["evaluation", "training"])
def test_small_clouds_repeat_points(variation: CloudVariation | None) -> None:
    clouds = open_clouds("scans", None, "test", size=15, points=64)
    points = PreparedClouds(clouds, 100, variation, seed=0)[0, 0]["points"]
    assert points.shape == (100, 3)
    assert {tuple(p) for p in points.tolist()} == {tuple(p) for p in clouds.cloud(0).tolist()}


def test_rotation_keeps_heights_and_distances() -> None:
    points = CLOUD.copy()
    turned = CloudVariation(rotate=True)(points, rng())
    np.testing.assert_allclose(turned[:, 1], points[:, 1])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1))
    assert not np.allclose(turned, points)
