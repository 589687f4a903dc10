"""Small problems with known answers, which an optimizer that is silently wrong fails: pass or fail, in seconds, on one core.

    python benchmarks/optimizer_problems.py                                 # every optimizer of ours
    python benchmarks/optimizer_problems.py --optimizers adamw dopr_muon

A problem takes a function ``make(model, lr=..., **options) -> optimizer``, like ``functools.partial(make_optimizer, "adamw")``, so that it
can be put to any optimizer. Each has the faults with it that it is there to catch, as optimizers that have them, and the command
says whether it does. In the spirit of HeavyBall's benchmark of silent failures.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from dopr_robot.optim import DoPr, make_optimizer

Make = Callable[..., Optimizer]
BASES = ("sgd", "adam", "adamw", "muon", "signum", "adamuon", "lion")
SCALE_FREE = BASES[1:]  # a step does not depend on the gradient's length
DECOUPLED = BASES[2:]  # weight decay beside the step
FORMS = ("batch", "average", "sketch", "auto")
RATES = (3e-2, 3e-3, 3e-1)


@dataclass(frozen=True)
class Problem:
    """A problem.

    Attributes:
        solve: whether what ``make`` makes solves it; its docstring says what the answer is.
        bases: who has to, bare and as ``dopr_<base>``; empty: DoPr over SGD, under every form of :data:`FORMS`.
        faults: optimizers with a fault that it is there to catch, by that fault.
    """

    solve: Callable[[Make], bool]
    bases: tuple[str, ...]
    faults: Mapping[str, Make]

    @property
    def name(self) -> str:
        """Its function's, in words."""
        return self.solve.__name__.replace("_", " ")

    def passes(self, make: Make) -> bool:
        """Whether it is solved; an optimizer that gives up has not."""
        try:
            return self.solve(make)
        except RuntimeError:
            return False


PROBLEMS: list[Problem] = []


def problem(bases: tuple[str, ...], faults: Mapping[str, Make]) -> Callable[..., Callable[[Make], bool]]:
    """Register a function as a problem."""

    def register(solve: Callable[[Make], bool]) -> Callable[[Make], bool]:
        PROBLEMS.append(Problem(solve, bases, faults))
        return solve

    return register


def descend(optimizer: Optimizer, loss: Callable[[int], Tensor], steps: Iterable[int]) -> None:
    """Backward and step, over and over."""
    for step in steps:
        loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()


def tower(*sizes: int) -> nn.Sequential:
    """A perceptron of three layers, whose middle one is a hidden matrix, in float64."""
    torch.manual_seed(0)
    a, b, c = sizes
    return nn.Sequential(nn.Linear(a, b), nn.Tanh(), nn.Linear(b, b), nn.Tanh(), nn.Linear(b, c)).double()


def regression(seed: int) -> tuple[Tensor, Tensor]:
    """A batch for ``tower(3, 8, 2)``."""
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def fit(model: nn.Module, step: int) -> Tensor:
    """The loss of ``tower(3, 8, 2)`` at a step."""
    x, y = regression(step)
    return F.mse_loss(model(x), y)


# Optimizers with a fault. Each is AdamW or DoPr over SGD but for that.


class Altered(AdamW):
    """AdamW whose step is done otherwise."""

    def __init__(self, model: nn.Module, lr: float, **options: Any) -> None:
        self.model = model
        super().__init__(model.parameters(), lr, weight_decay=options.pop("weight_decay", 0.0), **options)


class SkipsALayer(Altered):
    def step(self, closure: Any = None) -> Any:
        next(self.model.parameters()).grad = None
        return super().step()


class Rounds(Altered):
    def step(self, closure: Any = None) -> Any:
        super().step()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(p.bfloat16())


class KeepsItsGroups(Altered):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own, self.param_groups = self.param_groups, [dict(group) for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        shown, self.param_groups = self.param_groups, self.own
        super().step()
        self.param_groups = shown


class ForgetsOnLoading(Altered):
    def load_state_dict(self, state_dict: Any) -> None:
        pass


class Uncorrected(Altered):
    def step(self, closure: Any = None) -> Any:
        for p in self.model.parameters():
            self.state[p] = self.state[p] or {
                "step": torch.tensor(1e6),  # as if the averages were full
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        super().step()


def over_sgd(model: nn.Module, lr: float, **options: Any) -> DoPr:
    """DoPr whose steps are M itself."""
    return DoPr(SGD(model.parameters(), lr), model, **options)


def bare_sgd(model: nn.Module, lr: float, **options: Any) -> Any:
    """SGD with what problems ask of DoPr."""
    optimizer: Any = SGD(model.parameters(), lr)
    optimizer.token_mask = lambda mask: nullcontext()
    return optimizer


def forgets_parts(model: nn.Module, lr: float, **options: Any) -> DoPr:
    optimizer = over_sgd(model, lr, **options)
    model.register_forward_pre_hook(lambda *_: optimizer.forget_inputs())
    return optimizer


def ignores_masks(model: nn.Module, lr: float, **options: Any) -> DoPr:
    optimizer = over_sgd(model, lr, **options)
    optimizer.token_mask = lambda *masks: nullcontext()  # type: ignore[method-assign]
    return optimizer


def counts_every_forward(model: nn.Module, lr: float, **options: Any) -> DoPr:
    optimizer = over_sgd(model, lr, **options)
    model.register_forward_hook(lambda m, args, output: (0 * output).sum().backward(retain_graph=True))
    return optimizer


class LosesStatistics(DoPr):
    """DoPr whose state does without its part."""

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict() | {"state": {}}


# For every optimizer.


@problem(BASES, {"the first layer is never stepped": SkipsALayer})
def learns_through_every_layer(make: Make) -> bool:
    """Parity of two signs: the second one reaches the output only if the first layer learns to look at it."""
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    y = x.prod(1, keepdim=True)

    def learns(lr: float) -> bool:
        model = tower(2, 16, 1)
        with torch.no_grad():
            model[0].weight[:, 1] = 0
        optimizer = make(model, lr=lr)
        for _ in range(8):
            descend(optimizer, lambda _: F.mse_loss(model(x), y), range(15))
            if (model(x) * y > 0).all():
                return True
        return False

    return any(learns(lr) for lr in RATES)


@problem(BASES, {"weights are rounded to bfloat16": Rounds})
def small_steps_add_up(make: Make) -> bool:
    """Under a constant gradient a weight has moved by the sum of the rates: 100 steps of 1e-3 from 1 to 1.1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    descend(make(model, lr=1e-3), lambda _: -model(torch.ones(1, 1)).sum(), range(100))
    return abs(model.weight.item() - 1.1) < 0.02


@problem(SCALE_FREE, {"the averages are not corrected for their start": Uncorrected})
def first_step_is_as_long_as_the_rate(make: Make) -> bool:
    """Whatever the gradient is."""
    for scale in (1e-3, 1e3):
        model = nn.Linear(1, 1, bias=False).double()
        before = model.weight.item()
        descend(make(model, lr=0.01), lambda _, m=model, s=scale: s * m(torch.ones(1, 1).double()).sum(), range(1))  # type: ignore[misc]
        if abs(before - model.weight.item() - 0.01) > 1e-4:
            return False
    return True


@problem(SCALE_FREE, {"eps=1e-2 drowns the gradient": partial(Altered, eps=1e-2), "plain SGD": bare_sgd})
def scale_of_the_loss_does_not_matter(make: Make) -> bool:
    """Twenty steps under the loss and under a thousandth of it end in one place."""
    ends = []
    for scale in (1.0, 1e-3):
        model = tower(3, 8, 2)
        descend(make(model, lr=1e-2), lambda step, m=model, s=scale: s * fit(m, step), range(20))  # type: ignore[misc]
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    start = nn.utils.parameters_to_vector(tower(3, 8, 2).parameters())
    return bool((ends[0] - ends[1]).norm() < 0.01 * (ends[0] - start).norm())


@problem(DECOUPLED, {"decay goes through the averages": lambda model, **options: Adam(model.parameters(), **options)})
def decay_is_by_itself(make: Make) -> bool:
    """Without a gradient, matrices shrink by (1 - lr decay) at each step and nothing else happens."""
    model = tower(3, 8, 2)
    start = model[2].weight.detach().clone()
    descend(make(model, lr=0.1, weight_decay=0.5), lambda step: 0 * fit(model, step), range(10))
    return torch.allclose(model[2].weight, 0.95**10 * start)


@problem(BASES, {"schedulers see a copy of the groups": KeepsItsGroups})
def obeys_a_schedule(make: Make) -> bool:
    """At a rate of zero nothing moves."""
    model = tower(3, 8, 2)
    optimizer = make(model, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 5))
    for step in range(10):
        before = nn.utils.parameters_to_vector(model.parameters()).clone()
        descend(optimizer, lambda _: fit(model, 0), [step])
        schedule.step()
    return torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))


@problem(
    SCALE_FREE,
    {
        "a loaded state is not taken up": ForgetsOnLoading,
        "the second moments of inputs are not saved": lambda model, lr: LosesStatistics(
            SGD(model.parameters(), lr), model, form="average", update_every=7
        ),
    },
)
def resumes_where_it_was(make: Make) -> bool:
    """Ten steps, and ten more from the saved state, are twenty."""
    whole, first = tower(3, 8, 2), tower(3, 8, 2)
    descend(make(whole, lr=1e-2), partial(fit, whole), range(20))
    optimizer = make(first, lr=1e-2)
    descend(optimizer, partial(fit, first), range(10))
    state = copy.deepcopy(optimizer.state_dict())
    second = copy.deepcopy(first)
    resumed = make(second, lr=1e-2)
    resumed.load_state_dict(state)
    descend(resumed, partial(fit, second), range(10, 20))
    return all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@problem(("muon", "adamuon"), {"nothing is orthogonalised": bare_sgd})
def a_hidden_matrix_steps_alike_in_all_directions(make: Make) -> bool:
    """Its step has one length along both singular directions (to Newton-Schulz's 0.7 to 1.2), though the gradient has not."""
    model = tower(3, 8, 2)
    before = model[2].weight.detach().clone()
    descend(make(model, lr=1e-2), partial(fit, model), range(1))
    # The gradient goes through two outputs: it has two directions.
    lengths = torch.linalg.svdvals(model[2].weight.detach() - before)
    return bool(lengths[1] > 0.4 * lengths[0])


# For activation preconditioning: over SGD with a rate of 1, one step solves least squares, since G S^-1 is the way from W to the solution.

LINEAR: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
    # A layer, and the rows that its weight multiplies for inputs of 64 sequences [64, 6, 4].
    "linear": lambda: (nn.Linear(4, 3, bias=False), lambda x: x.flatten(0, 1)),
    "linear with bias": lambda: (nn.Linear(4, 3), lambda x: F.pad(x.flatten(0, 1), (0, 1), value=1.0)),
    "convolution": lambda: (
        nn.Sequential(Channels(), nn.Conv1d(4, 3, 3, bias=False), Channels()),
        lambda x: x.unfold(1, 3, 1).flatten(2).flatten(0, 1),
    ),
    "used twice": lambda: (Twice(), lambda x: torch.cat([x.flatten(0, 1), 5 * x.flatten(0, 1)])),
}


class Channels(nn.Module):
    """``[B, T, C]`` to ``[B, C, T]``, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Twice(nn.Module):
    """One layer, on an input and on five times that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), self.layer(5 * x)])


def sequences(seed: int, number: int = 64) -> Tensor:
    """Inputs ``[number, 6, 4]`` whose directions differ in scale by 100."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-1, 1, 4, dtype=torch.float64)
    return torch.randn(number, 6, 4, generator=generator, dtype=torch.float64) @ mix * scales + 0.5


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of a row, over the mean of the rows."""
    return 0.5 * (output.flatten(0, -2) - target).square().sum(-1).mean()


def solved(model: nn.Module, x: Tensor, rows: Tensor, target: Tensor) -> bool:
    """Whether the model's outputs are those of the least squares solution."""
    best = rows @ torch.linalg.lstsq(rows, target).solution
    return torch.allclose(model(x).flatten(0, -2).detach(), best, rtol=1e-5, atol=1e-6)


def targets(rows: Tensor) -> Tensor:
    """Something of three numbers that is no linear function of the rows."""
    return torch.stack([rows.sum(1).sin(), rows[:, 0], rows[:, 1] * rows[:, 2]], 1)


EXACT = {"lr": 1.0, "damping": 1e-12, "conv": "unfold", "include_bias": True}


@problem(
    (),
    {
        "the gradient is left as it is": bare_sgd,
        "damping is ignored": lambda model, lr, **o: over_sgd(model, lr, **{**o, "damping": 0.1}),
        "a convolution's inputs are its channels": lambda model, lr, **o: over_sgd(model, lr, **{**o, "conv": "sua"}),
        "biases are forgotten": lambda model, lr, **o: over_sgd(model, lr, **{**o, "include_bias": False}),
    },
)
def one_step_solves_least_squares(make: Make) -> bool:
    """For every kind of layer."""
    for build in LINEAR.values():
        torch.manual_seed(0)
        model, rows_of = build()
        model.double()
        x = sequences(0)
        rows = rows_of(x)
        target = targets(rows)
        descend(make(model, **EXACT), lambda _, m=model, t=target, x=x: half_squares(m(x), t), range(1))  # type: ignore[misc]
        if not solved(model, x, rows, target):
            return False
    return True


@problem((), {"each part begins anew": forgets_parts, "the gradient is left as it is": bare_sgd})
def parts_of_a_batch_are_one_batch(make: Make) -> bool:
    """Least squares again, the gradient gathered over four backwards."""
    model = nn.Linear(4, 3, bias=False).double()
    x = torch.cat([sequences(0, 16) * scale for scale in (1.0, 0.1, 3.0, 10.0)])
    rows = x.flatten(0, 1)
    target = targets(rows)
    optimizer = make(model, **EXACT)
    for part, its in zip(x.chunk(4), target.chunk(4), strict=True):
        (half_squares(model(part), its) / 4).backward()
    optimizer.step()
    return solved(model, x, rows, target)


@problem((), {"the mask is ignored": ignores_masks})
def padding_does_not_count(make: Make) -> bool:
    """Least squares over the tokens that a mask leaves."""
    model = nn.Linear(4, 3, bias=False).double()
    x = sequences(0)
    keep = torch.rand(64, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    x = torch.where(keep[..., None], x, 100.0)
    target = targets(x[keep])
    optimizer: Any = make(model, **EXACT)
    with optimizer.token_mask(keep):
        output = model(x)
    half_squares(output[keep], target).backward()
    optimizer.step()
    return solved(model, x[keep], x[keep], target)


@problem((), {"every forward counts": counts_every_forward})
def what_is_not_trained_on_does_not_count(make: Make) -> bool:
    """Least squares, after a forward on other data whose output is thrown away."""
    model = nn.Linear(4, 3, bias=False).double()
    x = sequences(0)
    rows = x.flatten(0, 1)
    target = targets(rows)
    optimizer = make(model, **EXACT)
    model(100 * sequences(1))
    descend(optimizer, lambda _: half_squares(model(x), target), range(1))
    return solved(model, x, rows, target)


@problem(
    (),
    {
        "S is that of the first step for ever": lambda model, lr, **o: over_sgd(
            model, lr, form="average", update_every=10**6, damping=0.1
        )
    },
)
def follows_inputs_that_change(make: Make) -> bool:
    """A rate that suits whitened inputs suits them at any scale: still so when they have grown by 30."""
    torch.manual_seed(0)
    model, truth = nn.Linear(4, 3, bias=False).double(), torch.randn(4, 3, dtype=torch.float64)

    def loss(step: int) -> Tensor:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        x = x * (30.0 if step >= 50 else 1.0)
        return half_squares(model(x), x @ truth)

    optimizer = make(model, lr=0.3, damping=0.1, update_every=1)
    settled = []
    for first in (0, 50):
        nn.init.zeros_(model.weight)
        begin = loss(first + 49).item()
        descend(optimizer, loss, range(first, first + 50))
        settled.append(loss(first + 49).item() < 1e-3 * begin)
    return all(settled)


@problem((), {"nothing is looked at": bare_sgd})
def a_bad_batch_leaves_no_trace(make: Make) -> bool:
    """Steps with a NaN among them end where the others alone end."""
    ends = []
    for steps in (range(6), (0, 1, 2, -1, 3, 4, 5)):
        model = tower(3, 8, 2)
        bad = torch.full((32, 3), float("nan"), dtype=torch.float64)
        descend(
            make(model, lr=1e-2, damping=0.1),
            lambda step, m=model, bad=bad: m(bad).sum() if step < 0 else fit(m, step),  # type: ignore[misc]
            steps,
        )
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    return torch.equal(*ends)


def contestants(each: Problem) -> Iterator[tuple[str, Make]]:
    """Who has to solve a problem, by name."""
    if each.bases:
        for base in each.bases:
            yield base, partial(make_optimizer, base)
            # A damping of 1 halves what DoPr over SGD steps along an input that never varies.
            yield f"dopr_{base}", partial(make_optimizer, f"dopr_{base}", damping=0.1)
    else:
        yield from ((f"dopr_sgd, form={form}", partial(over_sgd, form=form)) for form in FORMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--problems", nargs="+", metavar="NAME", choices=[each.name for each in PROBLEMS])
    options = parser.parse_args()
    failed = 0
    for each in PROBLEMS:
        if options.problems and each.name not in options.problems:
            continue
        verdicts = {
            name: each.passes(make)
            for name, make in contestants(each)
            if options.optimizers is None or name in options.optimizers
        }
        caught = [fault for fault, make in each.faults.items() if not each.passes(make)]
        failed += sum(not good for good in verdicts.values()) + len(each.faults) - len(caught)
        wrong = [name for name, good in verdicts.items() if not good]
        print(
            f"{each.name}: {len(verdicts) - len(wrong)} of {len(verdicts)}{', FAILED by ' + ', '.join(wrong) if wrong else ''}"
        )
        for fault in each.faults:
            print(f"    {'catches' if fault in caught else 'MISSES'}: {fault}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
