"""Adapters of the peft package: their matrices are preconditioned exactly, the frozen rest is not touched."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from dopr_robot.optim import DoPr, make_optimizer

SIZES = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(**SIZES, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, eos_token_id=0)
    ).double()
    options = {"use_dora": kind == "DoRA", "init_lora_weights": False}  # B is zero otherwise, and so A's gradient
    targets = ["c_attn", "c_fc"]
    return get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=True, **options)
    )


def dense(gradient: Tensor, z: Tensor) -> Tensor:
    z = z.detach().flatten(0, -2)
    moment = z.T @ z / len(z)
    damping = 0.1 * moment.trace() / len(moment)
    return gradient @ torch.linalg.inv(moment + damping * torch.eye(len(moment), dtype=z.dtype))


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_adapters_are_preconditioned_exactly(kind):
    """DoRA runs its adapters over an identity matrix too, for a norm that no gradient goes through: no input of theirs."""
    model = make(kind)
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1), model, damping=0.1, form="batch")
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    tokens = torch.randint(0, 20, (3, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    before = first.grad.clone(), second.grad.clone()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer.step()
    torch.testing.assert_close(first.grad, dense(before[0], seen[0]))
    torch.testing.assert_close(second.grad, dense(before[1], seen[0] @ (first + 0.1 * first.grad).T))  # as it was
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in frozen.items())
    covered = {row.name for row in optimizer.coverage() if row.preconditioned}
    assert covered == {name for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    frozen_rows = [row.how for row in optimizer.coverage() if row.name.endswith("c_attn.base_layer.weight")]
    assert frozen_rows == ["wants no gradient"]


def test_adapters_of_an_optimizer_without_the_model_train_and_are_loaded():
    model = make("LoRA")
    optimizer = make_optimizer("dopr_adamw", [p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.randint(0, 20, (3, 8))
    losses = []
    for _ in range(5):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    other = make("LoRA")
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert other(input_ids=tokens, labels=tokens).loss.item() == pytest.approx(
        model(input_ids=tokens, labels=tokens).loss.item()
    )
