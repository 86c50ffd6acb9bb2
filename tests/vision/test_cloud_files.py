"""Clouds read from files, and from the folders in which data sets are distributed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from peft_kernels.data_errors import DataError
from vision_peft.data.cloud_files import read_cloud
from vision_peft.data.clouds import open_clouds
from vision_peft.data.shapes.changes import normalised

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
