"""torchvision beside a torch of another build."""

import subprocess
import sys

import pytest


@pytest.mark.sim
def test_its_transforms_and_models_work_whatever_it_was_built_for():
    code = (
        "from dopr_robot.policies.torchvision import make_importable; make_importable(); make_importable()\n"
        "import torch; from torchvision import models, transforms\n"
        "image = transforms.functional.center_crop(torch.zeros(1, 3, 40, 40), 32)\n"
        "print(tuple(models.resnet18(weights=None).eval()(image).shape))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 1000)\n", done.stderr
