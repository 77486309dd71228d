"""Label cells: one class, or several, by what the cells say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.datasets import Clip, DatasetError
from common.datasets.labels import read_indicators, read_labels


@pytest.mark.parametrize(
    ("cells", "sets"),
    [
        (["dog;rain", "rain", "cat"], [("dog", "rain"), ("rain",), ("cat",)]),
        (["dog, rain", "rain,wind", "rain"], [("dog", "rain"), ("rain", "wind"), ("rain",)]),
        (["a|b|b", "", "b"], [("a", "b"), (), ("b",)]),
        (["['a', 'b']", "[]", "", "['c']"], [("a", "b"), (), (), ("c",)]),
        # A comma inside a name, where no part of the name is a label.
        (["Music;Child speech, kid speaking", "Music"], [("Music", "Child speech, kid speaking"), ("Music",)]),
    ],
)
def test_cells_with_a_label_of_other_cells_hold_several(cells: list[str], sets: list[tuple[str, ...]]) -> None:
    labels = read_labels(cells)
    assert labels.is_multilabel and labels.sets == sets
    assert f"of {len(cells)} clips" in labels.remark
    assert ("--label-separator none" in labels.remark) == (not any(cell.startswith("[") for cell in cells))


@pytest.mark.parametrize("cells", [["dog", "rain"], ["Child speech, kid speaking", "Music"]])
def test_other_cells_are_one_class_each(cells: list[str]) -> None:
    labels = read_labels(cells)
    assert not labels.is_multilabel and labels.sets == [(cell,) for cell in cells]
    assert bool(labels.remark) == ("," in cells[0])  # never silently


def test_the_separator_decides_where_the_cells_do_not() -> None:
    with pytest.raises(DatasetError, match=r"label 'Smith, Anna' may be several, .*--label-separator ','"):
        read_labels(["Smith, Anna", "Smith, Bob"])
    cells = ["dog;rain", "cat;wind"]
    with pytest.raises(DatasetError, match="label 'dog;rain' may be several, but no part of it stands alone elsewhere"):
        read_labels(cells)
    assert read_labels(cells, ";").sets == [("dog", "rain"), ("cat", "wind")]
    one = read_labels(cells, "none")
    assert not one.is_multilabel and one.sets == [("dog;rain",), ("cat;wind",)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a;b", "b", "a,c", "c"], "labels are separated by ';', but 'a,c' looks like several too"),
        (["['a']", "b"], r"labels are written in two ways, such as \['a'\] and b"),
        (["['a', 1]"], "is not a list of names"),
    ],
)
def test_two_notations_are_refused(cells: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_labels(cells)


def test_a_column_for_every_class() -> None:
    assert read_indicators({"dog": ["1", "0", "0"], "rain": ["1", "1", "0"]}, "123").sets == [
        ("dog", "rain"),
        ("rain",),
        (),
    ]
    with pytest.raises(DatasetError, match=r"line 3: column 'rain' is taken for a class, .* not '0.5'"):
        read_indicators({"dog": ["1", "0"], "rain": ["1", "0.5"]}, ("line 2", "line 3"))


def test_a_name_alone_is_not_a_set_of_labels() -> None:
    with pytest.raises(TypeError, match=r"labels must be a tuple such as \('dog',\)"):
        Clip(Path("a.wav"), "dog")  # type: ignore[arg-type]
