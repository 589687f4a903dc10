"""Checks that the optimizers share."""


def check_hyperparameters(*, lr: float, weight_decay: float, **decays: float) -> None:
    """Raise ValueError, naming the value, for a negative rate or a decay outside [0, 1)."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must not be negative")
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")
