"""Of sharded weights one rank a layer keeps the averaged moments: the steps are those of one process, and a state opens anywhere."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from dopr_robot.optim import ActivationPreconditioner, DoPr

BATCH = 12
ARMS = {
    "average": {"form": "average"},
    "low rank": {"form": "low_rank"},
    "lent": {"form": "average", "owned": "inverses"},
    "lent low rank": {"form": "low_rank", "owned": "inverses"},
}
RANKS = {2: ("low rank", "lent"), 3: ("average",), 4: ("lent low rank",)}


class Model(nn.Module):
    """A table of two uses, a convolution, attention, and a layer wide enough for forms of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 136), nn.Tanh(), nn.Linear(136, 8))
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.mlp((y + self.attention(y, y, y)[0]).flatten(1)))


def make(mesh: Any = None) -> Model:
    torch.manual_seed(0)
    model = Model().double()
    if mesh is not None:
        fully_shard(model.mlp, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def make_optimizer(model: nn.Module, arm: str) -> DoPr:
    return DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, update_every=2, **ARMS[arm])


def train(model: nn.Module, optimizer: DoPr, steps: range, micro: int = 1) -> list[Tensor]:
    rank, world = (dist.get_rank(), dist.get_world_size()) if isinstance(model, FSDPModule) else (0, 1)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens, y = (
            torch.randint(0, 6, (BATCH, 4), generator=generator),
            torch.randint(0, 6, (BATCH,), generator=generator),
        )
        tokens, y = tokens.chunk(world)[rank], y.chunk(world)[rank]
        for number, (t, target) in enumerate(zip(tokens.chunk(micro), y.chunk(micro), strict=True)):
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(number == micro - 1)
            (nn.functional.cross_entropy(model(t), target) / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def checkpoint_of(model: nn.Module, optimizer: DoPr) -> dict[str, Any]:
    return {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}


def restore(model: nn.Module, optimizer: DoPr, folder: str, **options: Any) -> None:
    state = checkpoint_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder, **options)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"])


def held(optimizer: DoPr) -> dict[str, list[str]]:
    return {factor.name: sorted(factor.state) for factor in optimizer.preconditioner.factors}


def worker(rank: int, world: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    if world == 4:  # two replicas of two halves
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for arm in RANKS[world]:
        model = make(mesh)
        optimizer = make_optimizer(model, arm)
        optimizer.spectrum()  # from here on each layer is compared with this step's own S
        result = train(model, optimizer, range(5), micro=3 if arm == "lent" and world == 2 else 1)
        torch.save((result, optimizer.spectrum(), held(optimizer), optimizer.memory_usage()), f"{out}/{arm}{rank}.pt")
    if world == 2:
        for arm in ("low rank", "lent"):
            model = make(mesh)
            optimizer = make_optimizer(model, arm)
            train(model, optimizer, range(3))
            dcp.save(checkpoint_of(model, optimizer), checkpoint_id=f"{out}/of two, {arm}")
            full = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_optimizer_state_dict(model, optimizer, options=full)
            weights = model.state_dict()
            if rank == 0:
                torch.save(state, f"{out}/full {arm}.pt")

            model = make(mesh)
            optimizer = make_optimizer(model, arm)
            model.load_state_dict(weights)
            scattered = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_optimizer_state_dict(model, optimizer, state, options=scattered)
            torch.save(train(model, optimizer, range(3, 5)), f"{out}/from full, {arm}{rank}.pt")

            model = make(mesh)
            optimizer = make_optimizer(model, arm)
            restore(model, optimizer, f"{out}/of one, {arm}")
            torch.save((train(model, optimizer, range(3, 5)), held(optimizer)), f"{out}/from one, {arm}{rank}.pt")
    dist.barrier()
    os._exit(0)  # the destructors of gloo's groups wait for their threads, now and then for ever


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {}
    for world in RANKS:
        out = folders[world] = tmp_path_factory.mktemp("ranks")
        if world == 2:
            for arm in ("low rank", "lent"):
                model = make()
                optimizer = make_optimizer(model, arm)
                train(model, optimizer, range(3))
                dcp.save(checkpoint_of(model, optimizer), checkpoint_id=f"{out}/of one, {arm}", no_dist=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.start_processes(worker, args=(world, port, str(out)), nprocs=world, start_method="fork")
    return folders


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[Tensor], DoPr]]:
    found = {}
    for arm in ARMS:
        model = make()
        optimizer = make_optimizer(model, arm)
        optimizer.spectrum()
        found[arm] = train(model, optimizer, range(5)), optimizer
    return found


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("world", "arm"), [(world, arm) for world, arms in RANKS.items() for arm in arms])
def test_several_ranks_take_the_steps_of_one_and_share_what_is_kept(ranks, alone, world, arm):
    expected, optimizer = alone[arm]
    here = [torch.load(ranks[world] / f"{arm}{rank}.pt", weights_only=False) for rank in range(world)]
    for result, spectrum, _, _ in here:
        assert difference(result, expected) < 1e-12
        assert difference(result, here[0][0]) == 0
        for name, figures in optimizer.spectrum().items():
            wanted = {key: value for key, value in figures._asdict().items() if value is not None}
            assert {key: getattr(spectrum[name], key) for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    for name, keys in held(optimizer).items():
        keepers = [rank for rank, (_, _, kept, _) in enumerate(here) if "matrix" in kept[name]]
        assert len(keepers) == 1
        for rank, (_, _, kept, _) in enumerate(here):
            others = [] if "lent" in arm else [key for key in keys if key not in ("matrix", "diagonal")]
            assert kept[name] == (keys if rank in keepers else others)
    # A share each, as far as a few layers can be shared evenly.
    totals = [usage["total"] for _, _, _, usage in here]
    whole = optimizer.memory_usage()["total"]
    assert sum(totals) == whole if "lent" in arm else whole < sum(totals) < world * whole


@pytest.mark.parametrize("arm", ["low rank", "lent"])
def test_a_state_of_two_ranks_goes_on_in_one_and_back(ranks, alone, arm):
    out, expected = ranks[2], alone[arm][0]
    model = make()
    optimizer = make_optimizer(model, arm)
    restore(model, optimizer, f"{out}/of two, {arm}", no_dist=True)
    assert difference(train(model, optimizer, range(3, 5)), expected) < 1e-12

    results = [torch.load(out / f"from one, {arm}{rank}.pt", weights_only=False) for rank in range(2)]
    assert all(difference(result, expected) < 1e-12 for result, _ in results)
    assert sum("matrix" in keys for _, kept in results for keys in kept.values()) == len(held(optimizer))


@pytest.mark.parametrize("arm", ["low rank", "lent"])
def test_a_full_state_is_the_state_of_one_process(ranks, alone, arm):
    model = make()
    optimizer = make_optimizer(model, arm)
    train(model, optimizer, range(3))
    entries = get_optimizer_state_dict(model, optimizer)["state"]
    full = torch.load(ranks[2] / f"full {arm}.pt", weights_only=False)["state"]
    for name, entry in entries.items():
        for key, value in entry.get("activation", {}).get("average", {}).items():
            assert type(full[name]["activation"]["average"][key]) is Tensor
            torch.testing.assert_close(full[name]["activation"]["average"][key], value, rtol=1e-7, atol=1e-9)
    for rank in range(2):
        assert difference(torch.load(ranks[2] / f"from full, {arm}{rank}.pt"), alone[arm][0]) < 1e-12


def test_what_can_be_owned_is_named():
    with pytest.raises(ValueError, match="owned='all' must be 'moments' or 'inverses'"):
        ActivationPreconditioner(nn.Linear(4, 2), owned="all")
