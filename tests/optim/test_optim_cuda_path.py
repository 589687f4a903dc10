"""The optimizer's CUDA path without a GPU: tensors that have a shape, a dtype and the device ``cuda``, but no numbers.

Whatever would wait for the device (``item``, ``bool``, ``tolist``, a shape that depends on numbers) raises on them. That takes a torch
that was built with CUDA, which the simulators' environment has. Backward needs a device: gradients are put there by hand.
"""

import pytest
import torch
from torch import nn

from dopr_robot.optim import ActivationPreconditioner
from dopr_robot.optim.factors import Backward

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA"),
]


class Known:
    """The answer that a layer's first refresh waits for: nothing is NaN or inf."""

    is_cuda = False

    def __bool__(self) -> bool:
        return False


@pytest.fixture
def backward_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output gets its gradient as soon as it is there."""
    monkeypatch.setattr(torch.Tensor, "register_hook", lambda tensor, hook: hook(torch.empty_like(tensor)))
    monkeypatch.setattr(Backward, "running", classmethod(lambda cls: cls()))


@pytest.fixture(autouse=True)
def nothing_copied_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that becomes a tensor on the device is copied there, and that is waited for; one that is filled in there is not."""
    for name in ("tensor", "as_tensor"):
        made = getattr(torch, name)

        def refuse(data, *args, made=made, **options):
            there = isinstance(data, torch.Tensor) or torch.device(options.get("device") or "cpu").type == "cpu"
            assert there, f"{data} is copied to the device"
            return made(data, *args, **options)

        monkeypatch.setattr(torch, name, refuse)


def to_fake_cuda(module: nn.Module) -> None:
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake


def steps(preconditioner: ActivationPreconditioner, policy: nn.Module, number: int) -> None:
    batch = {"observation": {"state": torch.empty(8, 2, 26, device="cuda")}}
    batch["action"] = torch.empty(8, 16, 7, device="cuda")
    for _ in range(number):
        assert policy.loss(batch)[0].device.type == "cuda"
        for parameter in policy.parameters():
            parameter.grad = torch.empty_like(parameter)
        assert preconditioner.precondition_()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("name", "network", "options"),
    [
        ("unet", {"channels": [16, 32, 192], "groups": 4}, {"form": "average"}),
        ("unet", {"channels": [16, 32], "groups": 4}, {"form": "average", "conv": "unfold", "include_bias": True}),
        ("unet", {"channels": [16, 32, 192], "groups": 4}, {"form": "batch"}),
        ("transformer", {"dim": 160, "layers": 1}, {"form": "average"}),
        ("transformer", {"dim": 160, "layers": 1}, {"form": "low_rank"}),
        ("transformer", {"dim": 32, "layers": 1}, {"form": "average", "update_every": 1}),
        ("mlp", {"dim": 256, "blocks": 1}, {"form": "average", "max_tokens": 64}),
        ("mlp", {"dim": 256, "blocks": 1}, {"form": "batch"}),
    ],
)
@pytest.mark.usefixtures("backward_at_once")
def test_no_ordinary_step_waits_for_the_device(name, network, options):
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    from dopr_robot.policies import ArraySpec, PolicySpec, make_policy

    spec = PolicySpec({"state": ArraySpec((26,))}, ArraySpec((7,)), n_obs_steps=2, horizon=16, n_action_steps=8)
    policy = make_policy({"name": f"flow_{name}", "network": network}, spec)
    policy._has_statistics = True  # looked for once, in the first step
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake_cuda(policy)
        preconditioner = ActivationPreconditioner(policy, max_nonfinite=9, **{"update_every": 3, **options})
        preconditioner.finite.bad = lambda *_: Known()  # every layer's first refresh waits for its answer
        steps(preconditioner, policy, 1)
        del preconditioner.finite.bad
        steps(preconditioner, policy, 6)  # every layer has its turn twice
        assert preconditioner.found_inf.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):  # bad steps are counted there, and read now and then
            steps(preconditioner, policy, 9)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.usefixtures("backward_at_once")
def test_a_base_that_can_not_look_on_the_device_is_given_the_answer():
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake_cuda(model)
        preconditioner = ActivationPreconditioner(model, form="batch")
        for wait in (False, True):
            model(torch.empty(4, 8, device="cuda"))
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
            if wait:
                with pytest.raises(DataDependentOutputException):
                    preconditioner.precondition_(wait=True)
            else:
                assert preconditioner.precondition_()
