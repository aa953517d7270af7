"""The short form of `python -m benchmarks.reliability kill`: real runs that are killed and stopped, and what they lose."""

import random

import pytest

from benchmarks.reliability import kill

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how, times", [(kill.kill, 4), (kill.stop, 2)])
def test_a_run_that_is_ended_from_outside_loses_nothing_that_was_finished(how, times, tmp_path):
    counts = how("CartPole", times, tmp_path, random.Random(1))
    assert {name: count for name, count in counts.items() if name in kill.MUST_BE_ZERO and count} == {}
    assert counts["episodes finished"] > 0
