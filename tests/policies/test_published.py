"""The published configurations: sizes, and answers of the authors' own code."""

import json
import re
import zlib
from pathlib import Path

import pytest
import torch

from dopr_robot.policies.networks import UNet, UNetConfig
from dopr_robot.policies.objectives import Diffusion, DiffusionConfig, Sizes

ANSWERS = Path(__file__).parent / "data" / "diffusion_policy_unet.json"
"""What ``ConditionalUnet1D`` of real-stanford/diffusion_policy (commit 5ba07ac) answered: ``input_dim=2, global_cond_dim=6,
diffusion_step_embed_dim=16, down_dims=[8, 16, 24], kernel_size=5``, with ``cond_predict_scale`` and without; every parameter
``wave(shape, name)``, the sample ``4 * wave((4, 8, 2), "sample")``, the condition ``2 * wave((4, 6), "global_cond")``."""


@pytest.mark.parametrize(
    ("channels", "time_dim", "action", "condition", "parameters"),
    [([256, 512, 1024], 256, 2, 20, 65_783_298), ([512, 1024, 2048], 128, 10, 23, 249_074_826)],
)
def test_unet_has_the_published_sizes(channels, time_dim, action, condition, parameters):
    with torch.device("meta"):
        network = UNet(
            UNetConfig(channels=channels, time_dim=time_dim),
            input_dim=action, output_dim=action, horizon=16, condition_dim=condition, n_obs_steps=2,
        )  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def wave(shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Numbers that every machine makes alike, of the size of an initial weight."""
    size = torch.Size(shape).numel()
    angles = 1.7 * torch.arange(size, dtype=torch.float64) + zlib.crc32(name.encode()) % 1000
    return (angles.sin() / (size / shape[0]) ** 0.5).view(shape).float()


def published_name(own: str) -> str:
    """The authors' name of one of our U-Net's parameters."""
    name = re.sub(r"^time\.mlp\.(\d)", lambda found: f"diffusion_step_encoder.{int(found[1]) + 1}", own)
    name = re.sub(r"^middle\.", "mid_modules.", name)
    name = re.sub(r"^(down|up)\.", r"\1_modules.", name)
    name = re.sub(r"^shrink\.(\d)", r"down_modules.\1.2.conv", name)
    name = re.sub(r"^grow\.(\d)", r"up_modules.\1.2.conv", name)
    name = re.sub(r"^head\.0", "final_conv.0.block", name)
    name = re.sub(r"^head\.1", "final_conv.1", name)
    name = re.sub(r"(first|second)\.(\d)", lambda found: f"blocks.{int(found[1] == 'second')}.block.{found[2]}", name)
    name = name.replace("first", "0").replace("second", "1")
    return name.replace("film", "cond_encoder").replace("residual", "residual_conv")


@pytest.mark.parametrize("film", ["scale_and_shift", "shift"])
def test_unet_answers_as_diffusion_policy_s_own(film):
    """To 1e-5, at the time that our diffusion hands over for the scheduler's steps."""
    recorded = json.loads(ANSWERS.read_text())
    config = UNetConfig(channels=[8, 16, 24], kernel_size=5, time_dim=16, scale_and_shift=film == "scale_and_shift")
    network = UNet(config, input_dim=2, output_dim=2, horizon=8, condition_dim=3, n_obs_steps=2)
    for name, parameter in network.named_parameters():
        parameter.data.copy_(wave(parameter.shape, published_name(name)))
    sample, condition = 4 * wave((4, 8, 2), "sample"), 2 * wave((4, 6), "global_cond").view(4, 2, 3)
    time = Diffusion(DiffusionConfig(), Sizes(2, 8, 3, 2))._time(torch.tensor(recorded["timesteps"]), sample)
    answer = network(sample, time, condition)
    assert torch.allclose(answer, torch.tensor(recorded[film]), rtol=0, atol=1e-5)
