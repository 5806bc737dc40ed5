"""Learning rates by step, and their state."""

from __future__ import annotations

import pytest
import torch

from recbole_mm.errors import ConfigError
from recbole_mm.training.schedule import lr_schedule


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)])


def rates(schedule, steps: int) -> list[float]:
    """Learning rate of the first group at each of `steps` optimizer steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.last_rates()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_warm_up_climbs_from_a_hundredth_to_the_full_rate():
    found = rates(lr_schedule(optimizer(), "constant", 100, warmup_steps=4), 7)
    assert found == pytest.approx([0.001, 0.02575, 0.0505, 0.07525, 0.1, 0.1, 0.1])


def test_a_ratio_is_a_share_of_all_steps():
    by_ratio = rates(lr_schedule(optimizer(), None, 40, warmup_ratio=0.1), 10)
    assert by_ratio == rates(lr_schedule(optimizer(), "constant", 40, warmup_steps=4), 10)


def test_linear_decay_reaches_zero_after_the_last_step():
    assert rates(lr_schedule(optimizer(), "linear", 4), 6) == pytest.approx([0.1, 0.075, 0.05, 0.025, 0, 0])


def test_cosine_decay_after_warm_up():
    found = rates(lr_schedule(optimizer(), "cosine", 6, warmup_steps=2, start_factor=0.5), 7)
    assert found == pytest.approx([0.05, 0.075, 0.1, 0.0853553, 0.05, 0.0146447, 0], abs=1e-6)


def test_without_warm_up_a_constant_rate_is_untouched():
    assert rates(lr_schedule(optimizer(), "constant", 3), 3) == [0.1] * 3


def test_each_group_keeps_its_own_rate():
    schedule = lr_schedule(optimizer(0.1, 0.002), "constant", 10, warmup_steps=2)
    assert schedule.last_rates() == pytest.approx([0.001, 0.00002])
    rates(schedule, 2)
    assert schedule.last_rates() == [0.1, 0.002]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_a_resumed_schedule_goes_on_exactly(name):
    arguments = {"name": name, "total_steps": 20, "warmup_ratio": 0.25}
    expected = rates(lr_schedule(optimizer(), **arguments), 20)
    first = lr_schedule(optimizer(), **arguments)
    rates(first, 7)
    fresh = lr_schedule(optimizer(), **arguments)
    fresh.optimizer.load_state_dict(first.optimizer.state_dict())  # this puts a scaled rate into the groups
    fresh.load_state_dict(first.state_dict())
    assert rates(fresh, 13) == expected[7:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin"}, "lr_scheduler: 'cosin' is not one of constant, cosine, linear"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "not both"),
        ({"warmup_ratio": 1.5}, "warmup_ratio: 1.5"),
        ({"warmup_ratio": -0.5}, "warmup_ratio: -0.5"),
        ({"warmup_steps": -1}, "warmup_steps: -1"),
        ({"start_factor": 2}, "warmup_start_factor: 2"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        lr_schedule(optimizer(), **{"name": "constant", "total_steps": 10, **arguments})
