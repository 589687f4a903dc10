"""State that moves: torch.distributed.checkpoint, copies, pickles, other optimizers, former releases."""

import copy
import gc
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from dopr_robot.optim import DoPr, make_optimizer
from dopr_robot.optim.checks import FORMS


class Net(nn.Module):
    """A table, a table that embeds and reads out, a convolution, attention, and a layer wide enough for a low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 10)
        self.convolution = nn.Conv1d(10, 10, 3, padding=1)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.wide = nn.Linear(150, 10)
        self.tied = nn.Embedding(7, 10)
        self.head = nn.Linear(10, 7, bias=False)
        self.head.weight = self.tied.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.convolution(self.embedding(tokens).mT).mT + self.tied(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.wide(x.flatten(1)))


def tokens(step: int) -> Tensor:
    return torch.randint(0, 7, (12, 15), generator=torch.Generator().manual_seed(step))


def make(form: str = "average", name: str = "dopr_adamw", seed: int = 0, **options: Any) -> tuple[nn.Module, DoPr]:
    torch.manual_seed(seed)
    model = Net()
    optimizer = make_optimizer(name, model, lr=1e-2, form=form, update_every=3, **options)
    assert isinstance(optimizer, DoPr)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        model(tokens(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [value]


FORM = pytest.mark.parametrize("form", ["batch", "average", "low_rank", "auto"])


@FORM
@pytest.mark.parametrize("name", ["dopr_adamw", "dopr_sgd"])
@pytest.mark.parametrize(("flat", "full"), [(False, False), (False, True), (True, False)])
def test_torch_distributed_checkpoints_functions_round_trip(form, name, flat, full):
    """Into an optimizer that has seen no forward: a dry step on zero gradients comes first."""
    if full and (form, name) == ("batch", "dopr_sgd"):
        pytest.skip("torch asks for one tensor at least, which here there is not")
    model, optimizer = make(form, name)
    train(model, optimizer, range(5))
    options = StateDictOptions(flatten_optimizer_state_dict=flat, full_state_dict=full)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    if not flat:
        assert saved.keys() == {"state", "param_groups"}
        assert saved["state"]["wide.weight"]["activation"]["step"] == 5
    again, other = make(form, name, seed=1)
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, saved, options=options)
    train(model, optimizer, range(5, 10))
    train(again, other, range(5, 10))
    assert same(model, again)


@pytest.mark.parametrize("form", ["batch", "average", "low_rank"])
def test_a_checkpoint_on_disk_is_loaded_into_the_room_that_the_dry_step_makes(form, tmp_path):
    model, optimizer = make(form)
    train(model, optimizer, range(5))
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    again, other = make(form, seed=1)
    again.load_state_dict(model.state_dict())
    room = {"optimizer": get_optimizer_state_dict(again, other)}
    dcp.load(room, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(again, other, room["optimizer"])
    train(model, optimizer, range(5, 10))
    train(again, other, range(5, 10))
    assert same(model, again)


def test_a_dry_step_moves_nothing_and_is_no_step():
    model, optimizer = make()
    before = copy.deepcopy(model)
    state = get_optimizer_state_dict(model, optimizer)
    assert same(model, before)
    assert optimizer.preconditioner.step == 0
    assert "exp_avg" in state["state"]["wide.weight"]
    model, optimizer = make(name="dopr_sgd")
    get_optimizer_state_dict(model, optimizer)
    twin, other = make(name="dopr_sgd")
    train(model, optimizer, range(4))
    train(twin, other, range(4))
    assert same(model, twin)


@FORM
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_trains_as_they_do_and_by_itself(form, bare, how):
    model, optimizer = make(form)
    if bare:
        optimizer = make_optimizer("dopr_adamw", model.parameters(), lr=1e-2, form=form, update_every=3)
    train(model, optimizer, range(4))
    pair = (model, optimizer)
    again, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(model, optimizer, range(4, 8))
    assert not same(model, again)
    train(again, other, range(4, 8))
    assert same(model, again)
    assert other.state is other.base.state
    assert other.coverage().never_fired == []


def test_a_copy_between_backward_and_step_begins_with_its_own_backward():
    """torch copies no gradients, so inputs that made one are none of the copy's."""
    model, optimizer = make("batch")
    model(tokens(0)).square().mean().backward()
    again, other = copy.deepcopy((model, optimizer))
    optimizer.zero_grad()
    train(model, optimizer, range(1, 3))
    train(again, other, range(1, 3))
    assert same(model, again)


def test_hooks_of_state_dict_fire():
    model, optimizer = make()
    train(model, optimizer, range(1))
    told = []
    optimizer.register_state_dict_pre_hook(lambda _: told.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: {k: v for k, v in state.items() if k != "more"})
    optimizer.register_load_state_dict_post_hook(lambda _: told.append("loaded"))
    state = optimizer.state_dict()
    assert state["more"] == 1
    optimizer.load_state_dict(state)
    assert told == ["before saving", "loaded"]


@FORM
def test_a_state_is_made_of_tensors_in_two_parts(form):
    model, optimizer = make(form)
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups"}
    assert all(isinstance(leaf, Tensor) for leaf in leaves(state["state"]))
    parts = [part["activation"] for part in state["state"].values() if "activation" in part]
    assert len(parts) == len(optimizer.preconditioner.factors) == 6
    assert {int(part["version"]) for part in parts} == {3}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.load(file, weights_only=True)


def test_a_state_of_a_later_version_is_refused():
    model, optimizer = make()
    train(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    for part in state["state"].values():
        if "activation" in part:
            part["activation"]["version"] = torch.tensor(9)
    with pytest.raises(ValueError, match="version 9"):
        optimizer.load_state_dict(state)


def test_a_bare_adamws_state_is_taken_up_and_given_back():
    torch.manual_seed(0)
    model = Net()
    bare = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, bare, range(3))
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-2), model)
    optimizer.load_state_dict(bare.state_dict())
    assert float(optimizer.state[model.wide.weight]["step"]) == 3
    assert optimizer.param_groups[0]["damping"] == 1.0
    train(model, optimizer, range(3, 6))
    assert optimizer.preconditioner.step == 3
    again = copy.deepcopy(model)
    back = torch.optim.AdamW(again.parameters(), lr=1e-2)
    back.load_state_dict(optimizer.state_dict())
    train(again, back, range(6, 8))
    assert float(back.state[again.wide.weight]["step"]) == 8
    # ... and what it carried along is taken up again.
    once_more = DoPr(torch.optim.AdamW(again.parameters(), lr=1e-2), again)
    once_more.load_state_dict(back.state_dict())
    assert once_more.preconditioner.step == 3
    train(again, once_more, range(8, 9))


def test_statistics_keep_their_precision_beside_bf16_weights():
    torch.manual_seed(0)
    model = nn.Linear(6, 3).bfloat16()
    optimizer = DoPr(torch.optim.AdamW(model.parameters()), model, form="average")
    model(torch.randn(20, 6).bfloat16()).square().mean().backward()
    optimizer.step()
    held = {key: value.clone() for key, value in optimizer.preconditioner.factors[0].state.items()}
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key, value in optimizer.preconditioner.factors[0].state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, held[key])


def former(optimizer: DoPr, version: int) -> dict[str, Any]:
    """The state as former releases wrote it: the preconditioner's part beside ``state`` and ``param_groups``, by names."""
    state = copy.deepcopy(optimizer.state_dict())
    for part in state["state"].values():
        part.pop("activation", None)
    for group in state["param_groups"]:
        for key in ("damping", "update_every", "precondition"):
            del group[key]
    factors = {}
    for name, saved in copy.deepcopy(optimizer.preconditioner.state_dict()["factors"]).items():
        factors["module." + name] = {"refreshed": int(saved["refreshed"]), "turned": saved["turned"]}
        factors["module." + name] |= saved.get("average", {})
        if version == 2:
            factors["module." + name]["form"] = FORMS[int(saved["form"])]
    activation = {"step": optimizer.preconditioner.step, "skipped": 1, "skipped_in_a_row": 0, "factors": factors}
    return {**state, "activation": activation | ({"version": 2} if version == 2 else {})}


@pytest.mark.parametrize(
    ("form", "version"), [("average", 1), ("low_rank", 1), ("batch", 2), ("average", 2), ("low_rank", 2), ("auto", 2)]
)
def test_a_former_releases_state_is_taken_up(form, version):
    model, optimizer = make(form)
    train(model, optimizer, range(5))
    saved = former(optimizer, version)
    again, other = make(form, seed=1)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    assert other.preconditioner.skipped == 1
    train(model, optimizer, range(5, 10))
    train(again, other, range(5, 10))
    assert same(model, again)


def test_names_know_nothing_of_wrappers():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    torch.manual_seed(0)
    wrapped = torch.compile(nn.Sequential(checkpoint_wrapper(nn.Linear(6, 4)), nn.Linear(4, 2)), backend="eager")
    optimizer = DoPr(torch.optim.AdamW(wrapped.parameters()), wrapped, include=["0.weight"])
    assert [factor.name for factor in optimizer.preconditioner.factors] == ["0.weight"]
    assert [row.name for row in optimizer.coverage()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimizer_that_goes_takes_its_hooks_along(scheduled):
    model, optimizer = make()
    train(model, optimizer, range(2))
    if scheduled:  # a scheduler and its optimizer hold one another
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    del optimizer
    if scheduled:
        gc.collect()
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooks == []
