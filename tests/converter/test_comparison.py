from __future__ import annotations

import numpy as np
import pytest

from maskfer_converter import comparison
from maskfer_converter.comparison import Limits, check_classes, check_limits, compare, same_classes
from maskfer_edge.dataset import PictureSet


def pictures(labels):
    return PictureSet(np.zeros((len(labels), 48, 48), np.uint8), np.array(labels), tuple(map(str, labels)))


def test_accuracy_agreement_and_recall_are_shares():
    found = compare(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), pictures([0, 0, 1, 1]))
    assert (found.float_accuracy, found.converted_accuracy, found.agreement) == (0.75, 0.5, 0.5)
    assert (found.recall["Angry"], found.recall["Disgust"]) == ((1.0, 0.5), (0.5, 0.5))
    assert found.recall["Fear"] is None
    assert found.pictures == 4


@pytest.mark.parametrize(
    ("converted", "agreement", "passed"),
    [(0.6, 0.97, [True, True]), (0.595, 1.0, [True, True]), (0.594, 1.0, [False, True]), (0.7, 0.969, [True, False])],
)
def test_the_limits_are_held(converted, agreement, passed):
    assert [check.passed for check in check_limits("masked test", 0.6, converted, agreement, Limits())] == passed


def test_what_was_found_says_lost_or_gained():
    assert check_limits("p", 0.6, 0.59, 1, Limits())[0].found == "1.00 lost"
    assert check_limits("p", 0.6, 0.61, 1, Limits())[0].found == "1.00 gained"


@pytest.mark.parametrize(("given", "passed"), [([3, 3, 3], False), ([3, 3, 4], True)])
def test_always_the_same_class_is_found(given, passed):
    assert check_classes("p", np.array(given)).passed is passed


@pytest.mark.parametrize(("count", "asked"), [(3, 3), (127, 64), (7178, 64)])
def test_runtimes_are_asked_about_faces_from_first_to_last(monkeypatch, count, asked):
    seen = []

    def classifier(model, runtime):
        return lambda face: seen.append(int(face[0, 0])) or np.eye(7)[0]

    monkeypatch.setattr(comparison, "Classifier", classifier)
    assert same_classes(None, np.tile(np.arange(count)[:, None, None], (1, 2, 2)))("auto")
    assert (len(seen), seen[0], seen[-1]) == (asked, 0, count - 1)
