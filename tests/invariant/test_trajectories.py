"""The first 20 steps of every method are those that were recorded: no change moves a curve unnoticed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from record import FILE
from trained import METHODS, ONE, curve

# Another CPU adds in another order. Over kernels for SSE, AVX2 and AVX-512 (ATEN_CPU_CAPABILITY, MKL_CBWR) and one or two threads,
# losses differed by 1e-5, norms by 5e-5 and the means below by 1.1e-6, relative; ten times that and more is allowed. AdamW with
# ten times its eps, or a rate 0.1 % higher, is found.
LOSS, NORM, MEAN = 1e-4, 5e-4, 2e-5

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_method_is_recorded():
    assert RECORDED.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_curve_is_the_recorded_one(method, runs):
    losses, norms = np.array(curve(runs(method, ONE))).T
    recorded = {name: np.array(values) for name, values in RECORDED[method].items()}
    assert losses == pytest.approx(recorded["loss"], rel=LOSS, abs=1e-6)
    assert norms == pytest.approx(recorded["grad_norm"], rel=NORM)
    # what rounding does to steps has no direction, what a changed formula does has
    assert (losses / recorded["loss"]).mean() == pytest.approx(1, abs=MEAN)
