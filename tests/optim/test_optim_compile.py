"""DoPr under torch.compile."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.convolution = nn.Conv1d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.attention(self.first(x)).transpose(1, 2))


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model_takes_the_same_steps(compile_first):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    model = Model()
    plain = copy.deepcopy(model)
    if compile_first:
        model.compile(backend="aot_eager")
    optimizer, other = (
        DoPr(torch.optim.SGD(each.parameters(), lr=0.1), each, form="average", update_every=3)
        for each in (model, plain)
    )
    compiled = model if compile_first else torch.compile(model, backend="aot_eager")
    for _ in range(7):
        x = torch.randn(5, 4, 8)
        for forward, steps in ((compiled, optimizer), (plain, other)):
            forward(x).square().mean().backward()
            steps.step()
            steps.zero_grad()
    assert optimizer.coverage().never_fired == []
    for actual, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 12  # not one for every pattern of refreshes
