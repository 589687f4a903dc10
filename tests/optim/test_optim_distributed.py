"""Data parallelism: two gloo processes of half the batch take the step of one process with the whole."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dopr_robot.optim import DoPr

STEPS = 6
FORMS = ("batch", "average", "low_rank", "auto")


class Model(nn.Module):
    """Convolution, attention that looks across, an embedding, and layers large enough for the low-rank inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 8, 3, padding=1)
        self.embedding = nn.Embedding(5, 8)
        # Without biases: a key's bias has gradient zero but for rounding, which AdamW would blow up to a step of size lr.
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 3)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(48, 160), nn.Tanh(), nn.Linear(160, 2))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = self.convolution(x).transpose(1, 2)
        memory = self.embedding(tokens)
        x = x + self.recurrent(x)[0] + (x.unsqueeze(1) @ self.experts).sum(1)
        return self.mlp(x + self.attention(x, memory, memory)[0])


def make() -> Model:
    torch.manual_seed(0)
    return Model().double()


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(12, 3, 6, generator=generator, dtype=torch.float64)
    return (
        x,
        torch.randint(0, 5, (12, 4), generator=generator),
        torch.randn(12, 2, generator=generator, dtype=torch.float64),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice) -> list[Tensor]:
    for step in range(STEPS):
        x, tokens, y = (tensor[part] for tensor in batch(step))
        # DDP takes the mean over ranks: each gives its share of the sum, of which the whole batch's mean is a twelfth.
        shares = dist.get_world_size() if isinstance(model, nn.parallel.DistributedDataParallel) else 12 / len(x)
        ((model(x, tokens) - y).square().sum() * shares / 24).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for form in FORMS:
        model = nn.parallel.DistributedDataParallel(make())
        optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, form=form, update_every=2)
        part = slice(0, 5) if rank == 0 else slice(5, 12)  # gathered rows are filled up to one length
        torch.save(train(model, optimizer, part), f"{out}/{form}{rank}.pt")

    alone = make()  # without averaging each rank keeps its own statistics
    optimizer = DoPr(torch.optim.AdamW(alone.parameters(), lr=1e-3), alone, process_group=False)
    torch.save(train(alone, optimizer, slice(rank * 6, rank * 6 + 6)), f"{out}/alone{rank}.pt")

    # Only rank 0 runs the branch; both have to take the same step nevertheless.
    torch.manual_seed(0)
    branches = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    parallel = nn.parallel.DistributedDataParallel(Branching(branches), find_unused_parameters=True)
    optimizer = DoPr(torch.optim.SGD(parallel.parameters(), lr=0.1), parallel, form="average", update_every=1)
    for step in range(3):
        parallel(torch.ones(2, 4) * (step + rank + 1), both=rank == 0).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save([p.detach() for p in branches.parameters()], f"{out}/branch{rank}.pt")
    dist.barrier()
    os._exit(0)  # the destructors of gloo's groups wait for their threads, now and then for ever


class Branching(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, both: bool) -> Tensor:
        x = self.layers[0](x)
        return self.layers[1](x) if both else x


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(worker, args=(port, str(out)), nprocs=2, start_method="fork")
    return out


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_of_a_part_of_the_batch_each_equal_one_of_the_whole(ranks, form):
    """The widest layer has fewer inputs than it is wide, so that their rows are gathered; the others' sums are added."""
    model = make()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, form=form, update_every=2)
    whole = train(model, optimizer, slice(None))
    first, second = (torch.load(ranks / f"{form}{rank}.pt") for rank in (0, 1))
    assert difference(first, whole) < 1e-5
    assert difference(first, second) == 0
    assert difference([p.detach() for p in make().parameters()], whole) > 1e-3  # something was learned at all


def test_without_a_group_ranks_keep_their_own_statistics(ranks):
    model = make()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model)
    assert difference(torch.load(ranks / "alone0.pt"), train(model, optimizer, slice(0, 6))) == 0


def test_a_layer_that_only_one_rank_runs(ranks):
    first, second = (torch.load(ranks / f"branch{rank}.pt") for rank in (0, 1))
    assert difference(first, second) == 0
