"""The learning rate of every step of a stage."""

from itertools import pairwise

import pytest

from training.schedule import ScheduleConfig


def test_the_papers_schedule_warms_up_and_falls_at_60k_and_80k_of_90k() -> None:
    """Detectron's R-50-FPN: linear from a third over 500 steps, then a tenth at 60k and again at 80k."""
    paper = ScheduleConfig()
    rates = {
        step: paper.rate(step, of=90_000) for step in (0, 250, 500, 59_999, 60_000, 79_999, 80_000, 89_999)
    }
    assert rates == pytest.approx(
        {0: 1 / 3, 250: 2 / 3, 500: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 89_999: 0.01}
    )


def test_cosine_meets_the_warm_up_at_the_top_falls_all_the_way_and_ends_near_final() -> None:
    schedule = ScheduleConfig(decay="cosine", warmup_steps=10, warmup_start=0.0, final=0.1)
    rates = [schedule.rate(step, of=110) for step in range(110)]
    assert rates[0] == 0.0 and rates[5] == pytest.approx(0.5) and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_without_decay_the_rate_stays() -> None:
    schedule = ScheduleConfig(decay="none", warmup_steps=0)
    assert [schedule.rate(step, of=5) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stage_shorter_than_the_warm_up_still_reaches_the_full_rate(steps: int) -> None:
    schedule = ScheduleConfig(decay="none", warmup_steps=500)
    assert schedule.rate(steps - 1, of=steps) == 1.0


def test_steps_of_a_run_fall_to_its_stages_in_order() -> None:
    schedule = ScheduleConfig(end_to_end_steps=2, detector_steps=3, mask_steps=4, classes_steps=5)
    assert schedule.total_steps == 14
    assert schedule.steps_done(0) == {"end_to_end": 0, "detector": 0, "mask": 0, "classes": 0}
    assert schedule.steps_done(4) == {"end_to_end": 2, "detector": 2, "mask": 0, "classes": 0}
    assert schedule.steps_done(11) == {"end_to_end": 2, "detector": 3, "mask": 4, "classes": 2}
