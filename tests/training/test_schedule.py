"""Learning rates, against diffusers' to the bit, and what importing the training costs."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from dopr_robot.training.config import SCHEDULES
from dopr_robot.training.schedule import make_schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 30])
def test_rates_and_states_are_those_of_diffusers(name, warmup):
    rates, states = [], []
    for make in (
        lambda optimizer: make_schedule(name, optimizer, warmup, 20),
        lambda optimizer: get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
        schedule, seen = make(optimizer), []
        for _ in range(20):
            seen += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        rates.append(seen)
        states.append({key: value for key, value in schedule.state_dict().items() if key != "_last_lr"})
    assert rates[0] == rates[1] and states[0] == states[1]
