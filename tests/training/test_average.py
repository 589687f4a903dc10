"""The average of the weights beside diffusers' own."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from dopr_robot.training.average import WeightAverage


def test_the_average_is_diffusers(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    theirs = EMAModel(model.parameters(), decay=0.97, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    ours = WeightAverage(model.parameters(), power=0.75, max_decay=0.97)
    decays = []
    for step in range(150):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        if step == 70:  # as after a resume
            state = ours.state_dict()
            ours = WeightAverage(model.parameters(), power=0.75, max_decay=0.97)
            ours.load_state_dict(state)
        ours.update()
        theirs.step(model.parameters())
        decays.append(ours.decay)
        assert ours.decay == pytest.approx(theirs.cur_decay_value)
    assert decays[0] == 0.0 and decays[-1] == 0.97
    for own, other in zip(ours.shadow, theirs.shadow_params, strict=True):
        torch.testing.assert_close(own, other)


def test_the_average_acts_inside_the_block_and_the_weights_come_back_even_after_an_error():
    model = nn.Linear(2, 2)
    average = WeightAverage(model.parameters(), power=0.75, max_decay=0.9)
    before = model.weight.detach().clone()
    average.shadow[0].fill_(3.0)
    with pytest.raises(RuntimeError), average.applied():
        assert bool((model.weight == 3.0).all())
        raise RuntimeError
    assert torch.equal(model.weight, before)


def test_an_average_of_other_weights_is_refused():
    average = WeightAverage(nn.Linear(2, 2).parameters(), power=0.75, max_decay=0.9)
    with pytest.raises(ValueError, match="other weights"):
        average.load_state_dict(WeightAverage(nn.Linear(3, 2).parameters(), power=0.75, max_decay=0.9).state_dict())
