"""The first 20 steps of every method are those that were recorded: no change moves a curve unnoticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from record import FILE
from trained import METHODS, ONE, curve

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_method_is_recorded():
    assert RECORDED.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_curve_is_the_recorded_one(method, runs):
    losses, norms = np.array(curve(runs(method, ONE))).T
    recorded = {name: np.array(values) for name, values in RECORDED[method].items()}
    assert losses == pytest.approx(recorded["loss"], rel=1e-4, abs=1e-5)
    assert norms == pytest.approx(recorded["grad_norm"], rel=3e-4)
    # what rounding does to steps has no direction, what a changed formula does has
    assert (losses / recorded["loss"]).mean() == pytest.approx(1, abs=2e-5)
