"""torchvision beside a torch of another build, as its index gives it: built for CUDA beside torch's CPU build."""

import torch

OPERATORS = ("nms", "qnms")
"""What ``torchvision._meta_registrations`` (0.20 to 0.29) says something about without looking whether it is there."""


def make_importable() -> None:
    """Make ``import torchvision`` work where its compiled operators can not be loaded, which ends it with "operator torchvision::nms does
    not exist". They are declared, without an implementation: who calls one is told so, and transforms and models, of which alone
    robomimic and timm make use, call none. Does nothing where torchvision works, or is not installed.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
