"""Every source, and the laws of the splits."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets

from tests.training.small_sets import data, fake_openml, grey, numbered, save, save_images
from training.data import Batch, Data, DataConfig
from training.mixtures import MIXTURES


def rows(data: Data) -> torch.Tensor:
    return torch.cat([data.train.x, data.validation.x, data.test.x])


# --- Sources --------------------------------------------------------------------------------


def test_digits_are_images_of_seventeen_levels_with_ten_classes() -> None:
    digits = data("sklearn:digits")
    assert digits.event.kind == "image"
    assert digits.event.shape == (1, 8, 8)
    assert digits.event.levels == 17
    assert digits.labels == tuple("0123456789")
    assert digits.mean is None
    assert digits.std is None
    assert rows(digits).dtype == torch.float32
    assert torch.equal(rows(digits) * 16, (rows(digits) * 16).round())
    assert digits.description == (
        "scikit-learn digits: 1,797 8x8 grey images; 1,347 train, 180 validation, 270 test (seed 0)"
    )


def test_each_digit_keeps_its_own_label() -> None:
    digits = data("sklearn:digits", seed=3)
    known = datasets.load_digits()
    by_image = {
        image.tobytes(): label for image, label in zip(known.data, known.target, strict=True)
    }
    assert digits.test.label is not None
    for image, label in zip(digits.test.x, digits.test.label, strict=True):
        assert by_image[(image.double() * 16).numpy().tobytes()] == label


@pytest.mark.parametrize(
    ("name", "n", "features", "classes"),
    [("iris", 150, 4, 3), ("wine", 178, 13, 3), ("breast_cancer", 569, 30, 2)],
)
def test_built_in_tables_have_names_for_features_and_classes(
    name: str, n: int, features: int, classes: int
) -> None:
    table = data(f"sklearn:{name}")
    assert rows(table).shape == (n, features)
    assert len(table.event.features) == features
    assert table.labels is not None
    assert len(table.labels) == classes


@pytest.mark.parametrize(
    ("name", "features", "classes"),
    [("moons", 2, 2), ("circles", 2, 2), ("blobs", 2, 3), ("swiss_roll", 3, 0), ("s_curve", 3, 0)],
)
def test_generated_sets_have_as_many_rows_as_asked_for(
    name: str, features: int, classes: int
) -> None:
    toy = data(f"sklearn:{name}", rows=500)
    assert rows(toy).shape == (500, features)
    assert len(toy.labels or ()) == classes


@pytest.mark.parametrize(("name", "modes", "spread"), [("ring", 8, 0.02), ("grid", 25, 0.05)])
def test_gaussians_lie_around_their_modes(name: str, modes: int, spread: float) -> None:
    points = data(f"gaussians:{name}", rows=4_000)
    centres = torch.from_numpy(MIXTURES[name].centres).float()
    assert centres.shape == (modes, 2)
    assert points.labels is None
    x = rows(points)
    assert x.shape == (4_000, 2)
    off, nearest = torch.cdist(x, centres).min(1)
    # Half the mean squared distance is the variance in either direction.
    assert (off.square().mean() / 2).sqrt().item() == pytest.approx(spread, rel=0.05)
    expected = 4_000 / modes
    assert ((nearest.bincount(minlength=modes) - expected) ** 2 / expected).mean() <= 3.0
    assert rows(data(f"gaussians:{name}", rows=50, noise=0.0))[0].tolist() in centres.tolist()
    assert not torch.equal(x, rows(data(f"gaussians:{name}", rows=4_000, seed=1)))


def test_noise_widens_a_generated_set() -> None:
    quiet, loud = (rows(data("sklearn:circles", rows=400, noise=s)) for s in (0.0, 0.5))
    assert quiet.norm(dim=1).max() < 1.001
    assert loud.norm(dim=1).max() > 1.5


def test_openml_pixels_become_images_with_their_official_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 784))
    frame = pd.DataFrame(pixels, columns=[f"pixel{k}" for k in range(784)])
    frame["class"] = pd.Series([str(k % 10) for k in range(60)], dtype="category")
    fake_openml(monkeypatch, lambda _: SimpleNamespace(frame=frame, target=frame["class"]))
    mnist = data("openml:mnist_784", shape=[1, 28, 28], test_tail=10)
    assert mnist.event.shape == (1, 28, 28)
    assert mnist.labels == tuple("0123456789")
    got = {tuple(row.tolist()) for row in (mnist.test.x.flatten(1) * 255).round().int()}
    assert got == {tuple(row) for row in pixels[-10:].tolist()}


def test_openml_regression_target_is_one_more_column(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(numbered(), columns=["a", "b", "price"])
    fake_openml(monkeypatch, lambda _: SimpleNamespace(frame=frame, target=frame["price"]))
    houses = data("openml:houses")
    assert houses.event.features == ("a", "b", "price")
    assert houses.labels is None


def test_npy_of_two_axes_is_rows_of_features(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", numbered())
    vectors = data(tmp_path / "rows.npy")
    assert vectors.event.kind == "vector"
    assert vectors.event.shape == (3,)
    assert vectors.labels is None
    assert sorted(rows(vectors)[:, 0].tolist()) == list(range(100))


@pytest.mark.parametrize("layout", ["grey", "first", "last"])
def test_images_come_out_channels_first_whatever_their_layout(tmp_path: Path, layout: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 5), dtype=np.uint8)
    stored = {"grey": images[:, 0], "first": images, "last": images.transpose(0, 2, 3, 1)}[layout]
    np.save(tmp_path / "images.npy", stored)
    loaded = data(tmp_path / "images.npy")
    expected = images[:, :1] if layout == "grey" else images
    assert loaded.event.shape == expected.shape[1:]
    assert loaded.event.levels == 256
    got = {image.numpy().tobytes() for image in rows(loaded)}
    assert got == {(image / np.float32(255)).tobytes() for image in expected}


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_images_are_read_from_either_scale(tmp_path: Path, scale: float) -> None:
    np.save(tmp_path / "bytes.npy", grey())
    np.save(tmp_path / "floats.npy", grey() / (255.0 / scale))
    assert data(tmp_path / "floats.npy").sha256 == data(tmp_path / "bytes.npy").sha256


def test_fractions_between_two_levels_go_to_the_nearest(tmp_path: Path) -> None:
    np.save(tmp_path / "soft.npy", np.full((30, 4, 5), 100.6 / 255))
    assert set(rows(data(tmp_path / "soft.npy")).unique().tolist()) == {np.float32(101 / 255)}


def test_boolean_images_have_two_levels(tmp_path: Path) -> None:
    np.save(tmp_path / "ink.npy", grey() > 127)
    assert data(tmp_path / "ink.npy").event.levels == 2
    assert set(rows(data(tmp_path / "ink.npy")).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [[2, 6], [1, 2, 6]])
def test_flat_rows_are_viewed_as_images(tmp_path: Path, shape: list[int]) -> None:
    np.save(tmp_path / "flat.npy", grey(30, 3, 4).reshape(30, 12))
    assert data(tmp_path / "flat.npy", shape=shape).event.shape == (1, 2, 6)


def test_npz_takes_its_labels_from_y(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=numbered(), y=np.array(["cat", "dog"] * 50))
    animals = data(path)
    assert animals.labels == ("cat", "dog")
    assert animals.train.label is not None
    assert torch.equal(animals.train.label, (animals.train.x[:, 0] % 2).long())


def test_npz_takes_its_labels_from_another_key(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=numbered(), sex=np.arange(100) % 2, y=np.zeros(100))
    assert data(path, label="sex").labels == ("0", "1")


def test_npz_keeps_its_own_splits(tmp_path: Path) -> None:
    x = numbered()
    path = save(tmp_path / "d.npz", x_train=x[:70], x_val=x[70:80], x_test=x[80:])
    own = data(path)
    assert sorted(own.train.x[:, 0].tolist()) == list(range(70))
    assert sorted(own.validation.x[:, 0].tolist()) == list(range(70, 80))
    assert sorted(own.test.x[:, 0].tolist()) == list(range(80, 100))


def test_npz_with_labels_per_split_keeps_them_beside_their_rows(tmp_path: Path) -> None:
    x, y = numbered(), np.arange(100)[:, None] % 5
    path = save(tmp_path / "d.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    own = data(path)
    for part in (own.train, own.validation, own.test):
        assert part.label is not None
        assert torch.equal(part.label, (part.x[:, 0] % 5).long())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_give_the_named_columns_in_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    frame = pd.DataFrame(numbered(), columns=["a", "b", "c"]).assign(kind=["x", "y"] * 50)
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    table = data(path, columns=["c", "a"], label="kind")
    assert table.event.features == ("c", "a")
    assert table.labels == ("x", "y")
    assert torch.equal(table.test.x[:, 0], table.test.x[:, 1] + 2000)
    assert table.test.label is not None
    assert torch.equal(table.test.label, (table.test.x[:, 1] % 2).long())
    assert data(path, columns=["a"]).labels is None
    assert data(path, label="kind").event.features == ("a", "b", "c")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_context_is_apart_and_beside_its_row(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"table{suffix}", numbered()
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    match suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            np.savez(path, x=rows[:, :1], b=rows[:, 1], c=rows[:, 2:])
    table = data(path, context=["c", "b"])
    assert table.context is not None
    assert table.context.names == ("c", "b")
    assert table.event.shape == (1,)
    for part in (table.train, table.validation, table.test):
        assert part.context is not None
        assert torch.equal(part.context[:, 0], part.x[:, 0] + 2000)
        assert torch.equal(part.context[:, 1], part.x[:, 0] + 1000)
        assert torch.equal(part[1:3].context, part.context[1:3])  # type: ignore[arg-type]
    assert table.train.context is not None
    assert table.context.minimum == tuple(table.train.context.min(0).values.tolist())
    assert table.context.maximum == tuple(table.train.context.max(0).values.tolist())
    assert data(path).sha256 != table.sha256


def test_context_of_several_numbers_under_one_key_has_a_name_for_each(tmp_path: Path) -> None:
    splits = {"x_train": numbered(60), "x_test": numbered(40)}
    told = {"c_train": numbered(60)[:, :2], "c_test": numbered(40)[:, :2]}
    found = data(save(tmp_path / "two.npz", **splits, **told), context=["c"])
    assert found.context is not None
    assert found.context.names == ("c1", "c2")
    for part in (found.train, found.test):
        assert part.context is not None
        assert torch.equal(part.context, part.x[:, :2])


def test_position_along_a_roll_is_its_context() -> None:
    roll = data("sklearn:swiss_roll", rows=200, noise=0.0, context=["position"])
    assert roll.test.context is not None
    position = roll.test.context[:, 0]
    torch.testing.assert_close(roll.test.x[:, 0], position * position.cos(), rtol=0, atol=1e-5)


def test_whole_number_labels_are_named_without_decimals(tmp_path: Path) -> None:
    frame = pd.DataFrame(numbered(), columns=["a", "b", "c"]).assign(digit=[10, 9] * 50)
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert data(tmp_path / "t.csv", label="digit").labels == ("9", "10")


def test_folder_of_images_takes_classes_from_its_sub_folders(tmp_path: Path) -> None:
    images = grey()
    images[:, 0, 0] = np.arange(30)
    pets = data(save_images(tmp_path / "pets", images, classes=("cat", "dog")))
    assert pets.labels == ("cat", "dog")
    assert pets.event.shape == (1, 4, 5)
    assert pets.train.label is not None
    corner = (pets.train.x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(pets.train.label, corner % 2)
    assert pets.description.startswith("folder pets: 30 5x4 grey images")


def test_flat_folder_of_colour_images_has_no_classes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)
    colours = data(save_images(tmp_path, images))
    assert colours.labels is None
    assert colours.event.shape == (3, 4, 5)
    assert "5x4 RGB images" in colours.description


def test_relative_path_starts_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "rows.npy", numbered())
    monkeypatch.chdir(tmp_path)
    assert data("rows.npy").description.startswith("rows.npy: 100 rows of 3 features")


# --- Splits and statistics ------------------------------------------------------------------


def first(part: Batch) -> list[float]:
    return part.x[:, 0].tolist()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", numbered(200))
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_are_disjoint_and_lose_no_row(table: Path, seed: int) -> None:
    split = data(table, seed=seed)
    parts = [first(split.train), first(split.validation), first(split.test)]
    assert [len(part) for part in parts] == [150, 20, 30]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(200))


def test_splits_repeat_with_the_seed_and_change_with_it(table: Path) -> None:
    again, other = data(table, seed=1), data(table, seed=2)
    assert first(data(table, seed=1).train) == first(again.train)
    assert first(again.test) != first(other.test)
    assert again.sha256 == other.sha256


def test_test_rows_do_not_depend_on_the_validation_fraction(table: Path) -> None:
    less, more = (data(table, validation_fraction=f) for f in (0.1, 0.4))
    assert first(less.test) == first(more.test)


def test_fewer_rows_shorten_each_split_and_move_none(table: Path) -> None:
    whole, short = data(table), data(table, rows=40)
    assert [len(part) for part in (short.train, short.validation, short.test)] == [30, 4, 6]
    assert first(short.train) == first(whole.train)[:30]
    assert first(short.validation) == first(whole.validation)[:4]
    assert first(short.test) == first(whole.test)[:6]
    assert "40 of 200 rows" in short.description


def test_more_rows_than_there_are_is_all_of_them(table: Path) -> None:
    assert first(data(table, rows=10_000).train) == first(data(table).train)


def test_test_tail_keeps_the_last_rows_for_testing(table: Path) -> None:
    tail = data(table, test_tail=50)
    assert sorted(first(tail.test)) == list(range(150, 200))
    assert first(tail.test) != sorted(first(tail.test))
    assert len(tail.validation) == 15


def test_statistics_are_those_of_the_training_rows_only(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(5, 2, (100, 2))
    x[80:] += 1e6
    np.save(tmp_path / "x.npy", x)
    shifted = data(tmp_path / "x.npy", test_tail=20)
    train = shifted.train.x.double().numpy()
    assert shifted.mean is not None
    assert shifted.std is not None
    assert shifted.mean.dtype == shifted.std.dtype == np.float64
    np.testing.assert_allclose(shifted.mean, train.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(shifted.std, train.std(axis=0), rtol=1e-12)
    assert shifted.mean.max() < 10


def test_digest_changes_with_one_value_and_with_one_label(tmp_path: Path) -> None:
    x, y = numbered(), np.arange(100) % 2
    digest = data(save(tmp_path / "a.npz", x=x, y=y)).sha256
    x[7, 1] += 1
    assert data(save(tmp_path / "b.npz", x=x, y=y)).sha256 != digest
    x[7, 1] -= 1
    y[7] = 0
    assert data(save(tmp_path / "c.npz", x=x, y=y)).sha256 != digest


def test_every_option_is_described() -> None:
    for name, field in DataConfig.model_fields.items():
        assert field.description, name
