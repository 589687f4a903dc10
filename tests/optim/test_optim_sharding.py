"""FSDP2: two gloo processes that hold half of each weight take the steps of one process that holds all."""

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from dopr_robot.optim import ActivationPreconditioner, DoPr

FORMS = {"batch": 25, "average": 25, "low_rank": 7, "sketch": 7, "auto": 7}  # and for how many steps


class Transposed(nn.Module):
    """Hugging Face's Conv1D, whose weight lies the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.nf = nn.Parameter(torch.randn(8, 6) / 3), nn.Parameter(torch.zeros(6)), 6

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Transposed.__name__ = "Conv1D"


class Model(nn.Module):
    """One of each way of lying in memory; sizes that two ranks can not share evenly; one wide enough for forms of low rank."""

    def __init__(self, across: bool) -> None:
        super().__init__()
        self.across = across  # whether attention's query is another tensor
        self.embedding = nn.Embedding(5, 8)
        self.convolution = nn.Conv1d(8, 7, 3, padding=1)
        self.grouped = nn.Conv1d(7, 7, 3, padding=1, groups=7)
        self.back = nn.ConvTranspose1d(7, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 3)
        self.transposed = Transposed()
        self.mlp = nn.Sequential(nn.Linear(24, 160), nn.Tanh(), nn.Linear(160, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.back(self.grouped(self.convolution(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.attention(y, x if self.across else y, x if self.across else y)[0]
        x = x + self.recurrent(x)[0] + torch.einsum("btd,efd->ebtf", x, self.experts).sum(0)
        return self.mlp(self.transposed(x).flatten(1))


def make(across: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(across).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 5, (12, 4), generator=generator), torch.randn(12, 1, generator=generator).double()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int | None, steps: range, micro: int = 1
) -> list[Tensor]:
    for step in steps:
        tokens, y = (part if rank is None else part[6 * rank : 6 * rank + 6] for part in batch(step))
        for number, (t, target) in enumerate(zip(tokens.chunk(micro), y.chunk(micro), strict=True)):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(number == micro - 1)
            ((model(t) - target).square().mean() / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)


def whole(model: nn.Module) -> list[Tensor]:
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def shard(model: Model, mesh) -> Model:
    for part in (model.mlp, model.attention):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def make_optimizer(model: nn.Module, form: str) -> DoPr:
    options = {"include_bias": True} if form == "average" else {}
    if form == "average" and not model.across:  # whose room in a checkpoint is not known before it runs
        options["exclude"] = ["experts"]
    return DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, form=form, update_every=3, **options)


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for form, steps in FORMS.items():
        model = shard(make(), mesh)
        optimizer = make_optimizer(model, form)
        result = train(model, optimizer, rank, range(steps))
        torch.save((result, {name: s.turned for name, s in optimizer.spectrum().items()}), f"{out}/{form}{rank}.pt")

    # HSDP: weights in one piece on each of two replicas of one rank.
    model = shard(make(), init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    torch.save(train(model, make_optimizer(model, "average"), rank, range(7)), f"{out}/replicated{rank}.pt")

    # Accumulation, whose gradients stay unsharded until the last.
    model = shard(make(), mesh)
    torch.save(train(model, make_optimizer(model, "batch"), rank, range(5), micro=3), f"{out}/accumulated{rank}.pt")

    # A checkpoint for another number of ranks.
    model = shard(make(across=False), mesh)
    optimizer = make_optimizer(model, "average")
    train(model, optimizer, rank, range(7))
    dcp.save(
        {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=f"{out}/dcp"
    )

    # What one rank alone sees is bad for both.
    before = whole(model)
    model(batch(0)[0]).sum().backward()
    if rank == 1:
        model.mlp[0].weight.grad.to_local()[0, 0] = float("nan")
    optimizer.step()
    assert optimizer.preconditioner.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, whole(model), strict=True))
    dist.barrier()
    os._exit(0)  # the destructors of gloo's groups wait for their threads, now and then for ever


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(worker, args=(free_port(), str(out)), nprocs=2, start_method="fork")
    return out


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_of_half_the_weights_equal_one(ranks, form):
    model = make()
    optimizer = make_optimizer(model, form)
    alone = train(model, optimizer, None, range(FORMS[form]))
    (first, turned), (second, _) = (torch.load(ranks / f"{form}{rank}.pt") for rank in (0, 1))
    assert difference(first, alone) < 1e-12
    assert difference(first, second) == 0
    assert difference(whole(make()), alone) > 1e-3  # something was learned at all
    assert turned == pytest.approx({name: s.turned for name, s in optimizer.spectrum().items()}, abs=1e-5)


def test_replicas_of_shards(ranks):
    model = make()
    alone = train(model, make_optimizer(model, "average"), None, range(7))
    assert difference(torch.load(ranks / "replicated0.pt"), alone) < 1e-12


def test_accumulation(ranks):
    model = make()
    alone = train(model, make_optimizer(model, "batch"), None, range(5))
    assert difference(torch.load(ranks / "accumulated1.pt"), alone) < 1e-12


def test_a_checkpoint_goes_on_with_another_number_of_ranks(ranks):
    reference = make(across=False)
    expected = train(reference, make_optimizer(reference, "average"), None, range(12))
    model = make(across=False)
    optimizer = make_optimizer(model, "average")
    state = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=str(ranks / "dcp"), no_dist=True)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"])
    assert optimizer.preconditioner.step == 7
    assert difference(train(model, optimizer, None, range(7, 12)), expected) < 1e-12


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_what_can_not_be_is_refused_by_name(one_rank):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    columns = fully_shard(model(), mesh=one_rank, shard_placement_fn=lambda p: Shard(1) if p.dim() > 1 else None)
    refused = (
        ("1.weight is sharded along dimension 1", parallelize_module(model(), one_rank, {"1": RowwiseParallel()})),
        ("1.weight is sharded by tensor parallelism", parallelize_module(model(), one_rank, {"1": ColwiseParallel()})),
        ("0.weight is sharded along dimension 1", columns),
        ("flat pieces", FullyShardedDataParallel(model(), device_id=torch.device("cpu"))),
    )
    for line, each in refused:
        with pytest.raises(ValueError, match=line) as caught:
            ActivationPreconditioner(each)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="process_group=False"):
        ActivationPreconditioner(fully_shard(copy.deepcopy(model()), mesh=one_rank), process_group=False)
