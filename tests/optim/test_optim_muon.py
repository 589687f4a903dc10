"""Which weights Muon takes, in our policies and in strangers' models; and what it does with those that hold several matrices."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from dopr_robot.optim import AdaMuon, Muon, make_optimizer, muon_roles, parameter_groups, saved_options
from dopr_robot.policies import PolicySpec, make_policy
from dopr_robot.policies.spec import ArraySpec


def policy(name: str, image: bool = False, **network: object) -> nn.Module:
    observations = {"state": ArraySpec((20,))} | ({"cam": ArraySpec((32, 32, 3), "uint8")} if image else {})
    spec = PolicySpec(observations, ArraySpec((7,)), n_obs_steps=2, horizon=16)
    config = {"name": name, "horizon": 16, "network": {"name": name.partition("_")[2], **network}}
    return make_policy(config | ({"encoder": {"backbone": "impala"}} if image else {}), spec)


def roles(model: nn.Module, hidden: object = "roles") -> dict[str, str]:
    """Of the matrices, without what repeats in later blocks."""
    return {row.name: row.role for row in muon_roles(model, hidden) if len(row.shape) > 1}


def adamws(model: nn.Module) -> dict[str, set[str]]:
    """Names by role of the matrices that go to AdamW."""
    named: dict[str, set[str]] = {}
    for row in muon_roles(model):
        if len(row.shape) > 1 and not row.muon:
            named.setdefault(row.role, set()).add(row.name.removesuffix(".weight"))
    return named


TIME = {"network.time.mlp.0", "network.time.mlp.2"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: policy("regression_mlp", dim=32),
            {"input layer": {"network.layers.0"}, "output head": {"network.layers.6"}},
        ),
        (
            lambda: policy("flow_mlp", dim=32),
            {"input layer": {"network.layers.0"}, "output head": {"network.layers.6"}, "time embedding": TIME},
        ),
        (
            lambda: policy("diffusion_transformer", dim=32, layers=2),
            {
                "no layer's weight": {"network.position"},
                "input layer": {"network.embed", "network.observe.0"},
                "time embedding": TIME,
                "modulation": {f"network.{part}modulation" for part in ("blocks.0.", "blocks.1.", "")},
                "output head": {"network.head"},
            },
        ),
        (
            lambda: policy("flow_unet", channels=[16, 32]),
            {
                "input layer": {"network.down.0.first.first.0", "network.down.0.first.residual"},
                "time embedding": TIME,
                "modulation": {
                    f"network.{level}.{block}.film.1"
                    for level in ("down.0", "down.1", "middle", "up.0")
                    for block in ("first", "second")
                },
                "output head": {"network.head.1"},
            },
        ),
        (
            lambda: policy("flow_mlp", image=True, dim=32),
            {
                "input layer": {"encoder.backbones.cam.stages.0.0", "network.layers.0"},
                "time embedding": TIME,
                "output head": {"network.layers.6"},
            },
        ),
    ],
)
def test_roles_in_our_policies(model, expected):
    assert adamws(model()) == expected


class HeadFirst(nn.Module):
    """A head that is registered before the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 7)
        self.first, self.second, self.third = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 64)


class Pictures(nn.Module):
    """A small convolutional network whose classifier has no name that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, stride=2), nn.Conv2d(16, 32, 3, stride=2)
        self.depth = nn.Conv2d(32, 32, 3, groups=32)
        self.c, self.d = nn.Linear(32 * 4, 24), nn.Linear(24, 10)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def mixtral() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    return MixtralForCausalLM(MixtralConfig(vocab_size=50, **sizes, **heads))


def actor_and_critics() -> nn.Module:
    def tower(*sizes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(sizes[0], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, sizes[1]))

    return nn.ModuleDict({"actor": tower(20, 7), "critics": nn.ModuleList([tower(27, 2), tower(27, 2)])})


@pytest.mark.parametrize(
    ("make", "hidden"),
    [
        (HeadFirst, {"second.weight", "third.weight"}),
        (Pictures, {"b.weight", "c.weight"}),
        (gpt2, {name for name, p in gpt2().named_parameters() if ".h." in name and p.dim() > 1}),
        (
            mixtral,
            {f"model.layers.0.self_attn.{k}_proj.weight" for k in "qkvo"}
            | {f"model.layers.0.mlp.experts.{k}_proj" for k in ("gate_up", "down")},
        ),
        (actor_and_critics, {"actor.2.weight", "critics.0.2.weight", "critics.1.2.weight"}),
        # As wide as what goes in and what comes out: the place decides.
        (lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), {"1.weight", "2.weight"}),
        (
            lambda: nn.ModuleDict({"rnn": nn.LSTM(10, 16, 2), "fc": nn.Linear(16, 4)}),
            {"rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1"},
        ),
    ],
)
def test_roles_in_strangers_models(make, hidden):
    assert {row.name for row in muon_roles(make()) if row.muon} == hidden


def test_what_holds_several_matrices_says_so():
    found = {row.name: (row.parts, row.transposed) for row in muon_roles(gpt2())}
    assert found["transformer.h.0.attn.c_attn.weight"] == (3, True)
    assert found["transformer.h.0.mlp.c_fc.weight"] == (1, True)
    assert {row.parts for row in muon_roles(mixtral()) if "experts" in row.name} == {4}
    assert {row.name: row.parts for row in muon_roles(nn.Transformer(8, 2, 1, 1, 16, batch_first=True))}[
        "encoder.layers.0.self_attn.in_proj_weight"
    ] == 3
    assert {row.parts for row in muon_roles(policy("regression_lstm", dim=32)) if row.muon} == {4}


def test_roles_are_printed():
    text = str(muon_roles(policy("flow_transformer", dim=32, layers=1)))
    assert "network.blocks.0.attention.query.weight                 32x32  Muon: hidden matrix" in text
    assert "AdamW: modulation" in text
    assert text.endswith(
        "modulation network.blocks.0.modulation.weight, network.modulation.weight; output head network.head.weight"
    )
    assert "3 in one" in str(muon_roles(gpt2()))


def test_names_decide_where_they_are_given():
    model = HeadFirst()
    assert {row.name for row in muon_roles(model, ["*.weight", "!out*"]) if row.muon} == {
        "first.weight",
        "second.weight",
        "third.weight",
    }
    assert {row.name for row in muon_roles(model, ["!third.*"]) if row.muon} == {"second.weight"}
    assert roles(model, ["first.weight"])["first.weight"] == "input layer, by name"
    groups = make_optimizer("muon", model, hidden=["first.weight"]).param_groups
    assert [p is model.first.weight for group in groups if group["use_muon"] for p in group["params"]] == [True]
    for hidden, message in ((["frist*"], "'frist\\*' matches no matrix"), ("first.weight", "list of patterns")):
        with pytest.raises(ValueError, match=message):
            make_optimizer("muon", model, hidden=hidden)
    with pytest.raises(ValueError, match="adamw has no option 'hidden'"):
        make_optimizer("adamw", model, hidden=["*"])


def test_a_state_of_former_releases_is_taken_up_under_their_rule(tmp_path):
    """Groups and state as they were written before there were roles."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    matrices, vectors = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1]
    former = [
        {"params": matrices[:2], "weight_decay": 0.1, "use_muon": True},
        {"params": matrices[2:], "weight_decay": 0.1, "use_muon": False},
        {"params": vectors, "weight_decay": 0.0, "use_muon": False},
    ]
    old = Muon(former, lr=1e-2)
    model(torch.randn(4, 6)).square().sum().backward()
    old.step()
    state = copy.deepcopy(old.state_dict())
    for group in state["param_groups"]:
        for key in ("adjust_lr_fn", "parts", "transposed"):
            del group[key]
    assert saved_options({"name": "dopr_muon", "form": "batch"})["hidden"] == "order"
    assert saved_options({"name": "muon", "hidden": "roles"})["hidden"] == "roles"
    resumed = make_optimizer("muon", model, lr=1e-2, hidden="order")
    resumed.load_state_dict(state)
    assert torch.equal(resumed.state[matrices[0]]["momentum_buffer"], old.state[matrices[0]]["momentum_buffer"])
    resumed.step()
    with pytest.raises(ValueError, match="hidden='order'"):
        make_optimizer("muon", model, lr=1e-2).load_state_dict(state)


def stepped(make: type[Muon], weights: list[Tensor], gradients: list[list[Tensor]], **options: object) -> list[Tensor]:
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = make([{"params": parameters, **options}], lr=0.1, weight_decay=0.1)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("make", [Muon, AdaMuon])
def test_stacked_matrices_are_taken_one_by_one(make):
    torch.manual_seed(0)
    weight, gradients = torch.randn(12, 5), [torch.randn(12, 5) for _ in range(3)]
    apart = [
        stepped(make, [part], [[each] for each in given])[0]
        for part, given in zip(weight.chunk(3), zip(*(g.chunk(3) for g in gradients), strict=True), strict=True)
    ]
    (together,) = stepped(make, [weight], [[g] for g in gradients], parts=3)
    torch.testing.assert_close(together, torch.cat(apart))
    (columns,) = stepped(make, [weight.t()], [[g.t()] for g in gradients], parts=3, transposed=True)
    torch.testing.assert_close(columns.t(), together)
    (experts,) = stepped(make, [weight.view(3, 4, 5)], [[g.view(3, 4, 5)] for g in gradients], parts=3)
    torch.testing.assert_close(experts.view(12, 5), together)


@pytest.mark.parametrize("make", [Muon, AdaMuon])
def test_batched_over_equal_shapes_each_steps_as_alone(make, monkeypatch):
    torch.manual_seed(0)
    shapes = [(8, 6), (5, 3, 2), (8, 6), (5, 6), (8, 6)]
    weights = [torch.randn(shape) for shape in shapes]
    weights.append(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(3)]
    alone = [stepped(make, [w], [[step[n]] for step in gradients])[0] for n, w in enumerate(weights)]
    for limit in (2**24, 1):
        monkeypatch.setattr("dopr_robot.optim.muon._BATCH", limit)
        for one, other in zip(stepped(make, weights, gradients), alone, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("name", ["original", "match_rms_adamw"])
def test_factors_are_torchs_by_their_names(shape, name):
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    start = torch.zeros(shape)
    theirs = nn.Parameter(start.clone())
    theirs.grad = gradient.clone()
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn=name).step()
    (ours,) = stepped(Muon, [start], [[gradient]], adjust_lr_fn=name)
    # Torch iterates in bfloat16.
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    (turned,) = stepped(Muon, [start.t()], [[gradient.t()]], adjust_lr_fn=name, transposed=True)
    torch.testing.assert_close(turned.t(), ours)
    (adaptive,) = stepped(AdaMuon, [start], [[gradient]], adjust_lr_fn=name)
    factor = 0.2 * 48**0.5 if name == "match_rms_adamw" else max(1, shape[0] / shape[1]) ** 0.5
    assert adaptive.norm() == pytest.approx(0.1 * factor * 32**0.5, rel=1e-4)  # that of an orthogonal matrix


def test_bad_groups_are_refused():
    weight = [nn.Parameter(torch.zeros(8, 4))]
    with pytest.raises(ValueError, match="adjust_lr_fn='orignal' must be one of original, match_rms_adamw"):
        Muon(weight, adjust_lr_fn="orignal")
    with pytest.raises(ValueError, match=r"parts=3: a weight of shape \(8, 4\)"):
        Muon([{"params": weight, "parts": 3}])


def test_groups_without_muon_are_as_ever():
    groups = parameter_groups(gpt2(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_gpt2_learns_under_dopr_muon():
    torch.manual_seed(0)
    model = gpt2()
    optimizer = make_optimizer("dopr_muon", model, lr=1e-2, form="average")
    tokens = torch.arange(64).view(4, 16) % 7
    losses = []
    for _ in range(25):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
