"""What runs that are compared have to share, as checksums taken by the loop before its first step."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dopr_robot.datasets import Windows
from dopr_robot.policies import Policy
from dopr_robot.training.data import to_tensors
from dopr_robot.training.noise import step_seed

START = "start.json"
ROWS = 32
"""Windows that the first loss is taken over."""


@torch.no_grad()
def fingerprint(policy: Policy, windows: Windows, first: Sequence[NDArray[np.int64]], seed: int) -> dict[str, Any]:
    """Content of a run folder's ``start.json``.

    Args:
        first: indices of the first batches.
        seed: ``training.seed``.

    Returns:
        ``initial_weights_sha256`` (weights and normalisation), ``first_batches_sha256`` (content and order), ``first_loss`` (of the
        first batch's first 32 windows under the first step's noise: two runs have it in common, to the bit, where they share weights,
        data and noise) and ``parameters`` (their number).
    """
    weights = sha256()
    for name, value in sorted(policy.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    content = sha256()
    for indices in first:
        batch = windows.batch(indices)
        for array in (indices, *(batch["observation"][name] for name in sorted(batch["observation"])), batch["action"]):
            content.update(np.ascontiguousarray(array).tobytes())
    device = next(policy.parameters()).device
    was_training = policy.training
    policy.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_seed(seed, 1))
        loss = policy.loss(to_tensors(windows.batch(first[0][:ROWS]), device))[0].item()
    policy.train(was_training)
    return {
        "initial_weights_sha256": weights.hexdigest(),
        "first_batches_sha256": content.hexdigest(),
        "first_loss": loss,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
    }
