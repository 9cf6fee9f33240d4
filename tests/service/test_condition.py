"""Labels by number and by name."""

import numpy as np
import pytest

from service.condition import Condition
from service.errors import InputInvalid
from service.manifest import Manifest
from tests.service.bundles import TILES


def of(*labels: str) -> Manifest:
    manifest = TILES.manifest(TILES.files())
    return manifest.model_copy(update={"labels": labels})


@pytest.mark.parametrize("label", [1, "1"])
def test_digits_are_a_number_whatever_the_classes_are_called(label: int | str) -> None:
    told = Condition(label).told(of("1", "2", "3"), n=2)["label"]
    assert told.array.tolist() == [1, 1]
    with pytest.raises(InputInvalid, match=r"expected 0 to 1 \(3, 7\); got '7'"):
        Condition("7").told(of("3", "7"), n=1)


def test_of_two_classes_of_one_name_both_have_a_number() -> None:
    manifest = of("a", "a", "b")
    assert Condition([0, 1, 2]).told(manifest, n=3)["label"].array.tolist() == [0, 1, 2]
    assert Condition(["b", 2, "2"]).told(manifest, n=3)["label"].array.tolist() == [2, 2, 2]


@pytest.mark.parametrize("bad", [3, -1, 2**63, 2**70, "c", "\u0663", "9" * 30])
def test_first_of_many_that_is_no_class_is_named(bad: int | str) -> None:
    with pytest.raises(InputInvalid, match=r"field 'label': expected 0 to 2 \(a, b, d\); got "):
        Condition([0, "a", bad, 1]).told(of("a", "b", "d"), n=4)
    with pytest.raises(InputInvalid, match="got"):
        Condition([0, bad] if isinstance(bad, int) else bad).told(of("a", "b", "d"), n=2)


def test_labels_are_counted_before_they_are_looked_at() -> None:
    with pytest.raises(InputInvalid, match=r"expected one label, or 2 .*; got 3"):
        Condition(["no", "such", "class"]).told(of("a", "b"), n=2)


def test_many_labels_keep_their_order() -> None:
    label = np.random.default_rng(0).integers(0, 3, 10_000).tolist()
    named = ["abd"[each] for each in label]
    for given in (label, named):
        assert Condition(given).told(of("a", "b", "d"), n=10_000)["label"].array.tolist() == label
