"""The inputs of one weight: their second moment, and what its gradient is multiplied by."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dopr_robot.optim.layers import Blocks, Experts, Layer, PackedProjection
from dopr_robot.optim.products import Products, gram

if TYPE_CHECKING:
    from dopr_robot.optim.batch import BatchInverse
    from dopr_robot.optim.capture import Call


class Rows(NamedTuple):
    """Inputs kept as they are: ``z`` [groups, n, d], and the gradient at the output that each met [groups, n, rows], where it is known."""

    z: Tensor
    d: Tensor | None


class Backward:
    """One backward pass that is running or over."""

    _running: dict[int, "Backward"] = {}

    def __init__(self) -> None:
        self.finished = False
        self.products = Products()

    @classmethod
    def running(cls) -> "Backward":
        """The pass that this is called from, inside a hook of autograd."""
        number = torch._C._current_graph_task_id()
        if number not in cls._running:
            for other in cls._running.values():  # one that raised stays here, and may not hold a batch
                other.products = Products()
            cls._running = {number: cls()} if len(cls._running) > 64 else cls._running | {number: cls()}

            def finish() -> None:
                over = cls._running.pop(number)
                over.finished, over.products = True, Products()

            torch.autograd.Variable._execution_engine.queue_callback(finish)
        return cls._running[number]


class Factor:
    """Second moment and inverse of one parameter, over all its uses.

    With several uses (a module called twice, weights tied between modules) the moment is taken over the inputs of all of them, each
    input vector counting once. Where a table is both an embedding and a linear layer, its uses multiply different sides of it, and
    the two moments stand side by side: the step solves ``diag(s) M + M S = G``, damped, which is what the metric
    ``sum over uses of |dW z|^2`` asks for, and what a single use is a special case of.

    Args:
        name: the parameter's name in the model.
        layers: its uses.
        form: ``"batch"`` (S is this step's), ``"average"``, ``"low_rank"``, a sketch or ``"auto"``, see ``ActivationPreconditioner``.

    Attributes:
        form: as given; of ``"auto"`` ``"batch"``.
        damping: its own; None: that of its weight's group.
        max_cost: as the preconditioner's.
        sample: of how many inputs S was formed last, where not of all.
        state_dtype: what matrices are kept in from step to step; None: what they are computed in.
        offload: whether what only a refresh needs waits in the CPU's memory.
        rank: how many leading directions a form of low rank treats one by one; None: as the preconditioner says.
        state: what a checkpoint keeps: the second moments ``matrix`` [groups, d, d] and ``diagonal`` [V], and the inverse in one of
            the forms of ``inverses``: ``inverse``; ``basis, left, scale``; or for a table of two uses ``basis, eigenvalues, damped``.
            Nothing where the form is ``"batch"``.
        due: whether inputs are to be recorded for the next step.
        refreshed: the step at which S was formed last.
        last: what a solved factor multiplied by when ``turned`` was looked at.
        compare: whether ``cosine`` is to be formed at the next refresh.
        cosine: between the preconditioned gradient and what this step's own S would have made of it, where that was asked for.
        turned: share of the preconditioned gradient's squared length that is not along the gradient, when it was last looked at.
        owner: the rank that alone keeps the averaged moments and forms the inverse; None: every rank does.
        mine: whether this rank is it, or there is none.
        lent: whether the owner keeps the inverse alone too, and lends it at every step.
    """

    def __init__(self, name: str, layers: Sequence[Layer], form: str = "average") -> None:
        self.name = name
        self.layers = list(layers)
        self.weight: nn.Parameter = layers[0].weight
        self.matrix = next((layer for layer in layers if not layer.diagonal), None)
        self.diagonal = next((layer for layer in layers if layer.diagonal), None)
        self.dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.damping: float | None = None
        self.max_cost: float | None = None
        self.sample: int | None = None
        self.state_dtype: torch.dtype | None = None
        self.offload = False
        self.due = True
        self.phase = 0
        self.cosine: Tensor | None = None
        self.compare = False
        self.owner: int | None = None
        self.mine, self.lent = True, False
        self.forget(form)
        self.clear()

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias that is preconditioned together with the weight."""
        return self.matrix.bias if self.matrix is not None else None

    @property
    def groups(self) -> int:
        """Number of second moments side by side."""
        return self.matrix.groups if self.matrix is not None else 1

    @property
    def solved(self) -> bool:
        """Whether a step solves with this step's inputs, so that there is no inverse to keep."""
        return self.form == "batch" and self.diagonal is None

    def described(self) -> str:
        """Which S the gradient meets, for the report."""
        if self.form == "batch":
            return "this step's S" + (f", of {self.sample} inputs" if self.sample is not None else "")
        if self.sketched:
            whose = "this step's" if self.form == "sketch" else "averaged"
            return f"{whose} S, {self.rank} leading directions by a sketch"
        return "averaged S, leading directions" if "basis" in self.state and self.diagonal is None else "averaged S"

    @property
    def sketched(self) -> bool:
        """Whether S is known by its leading directions alone, so that there is no matrix of the layer's width."""
        return self.form in ("sketch", "average_sketch")

    @property
    def fresh(self) -> bool:
        """Whether S is of this step's inputs, so that every step needs them."""
        return self.form in ("batch", "sketch")

    @property
    def out(self) -> int:
        """How many rows the gradient has for each second moment, kernel taps counted."""
        assert self.matrix is not None
        return self.weight.numel() // (self.groups * self.matrix.width())

    @property
    def ready(self) -> bool:
        """Whether there is an inverse to multiply by."""
        return self.refreshed >= 0 and not self.solved

    @property
    def averaged(self) -> bool:
        """Whether there is an average of matrices, which has to be inverted."""
        return self.form in ("average", "low_rank") and self.matrix is not None

    @property
    def cost(self) -> int:
        """Multiplications of a refresh, to an order of magnitude."""
        return self.matrix.groups * self.matrix.dim**3 if self.matrix is not None else self.layers[0].dim

    def value(self, key: str) -> Tensor:
        """A part of the state, where and as it is computed with."""
        return self.state[key].to(self.weight.device, self.dtype)

    def kept(self, key: str, value: Tensor) -> Tensor:
        """``value``, a part of the state, where and as it is kept."""
        if value.dim() < 3 or self.diagonal is not None:
            return value
        away = self.offload and key in ("matrix", "inside")
        return value.to("cpu" if away else self.weight.device, self.kept_dtype(value.dim()))

    def kept_dtype(self, dims: int) -> torch.dtype:
        """What a part of the state of so many dimensions is kept in."""
        return self.dtype if dims < 3 or self.diagonal is not None else self.state_dtype or self.dtype

    def alone(self, key: str) -> bool:
        """Whether a part of the state is the owner's alone."""
        return self.owner is not None and (self.lent or key in ("matrix", "diagonal"))

    def leave_to_owner(self) -> None:
        """Let go of what another rank keeps alone."""
        if not self.mine:
            for key in list(filter(self.alone, self.state)):
                del self.state[key]

    def keep(self) -> None:
        """Put a newly formed state where and as it is kept."""
        for key, value in self.state.items():
            self.state[key] = self.kept(key, value)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to graphs, which can not be copied."""
        return self.__dict__ | {"_calls": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _calls=WeakSet())

    def extend(self, other: "Factor") -> None:
        """Take over the uses of ``other``, which is of the same weight, and what it has loaded; inputs recorded so far stay."""
        passing = ("seen", "sums", "rows", "counts", "due", "owner", "mine", "lent", "_divided", "_calls", "_backward")
        self.__dict__.update({key: value for key, value in other.__dict__.items() if key not in passing})

    def forget(self, form: str) -> None:
        """Begin afresh, in a form as :class:`Factor` was given it."""
        # The frequencies of an embedding cost nothing to form, and a table of two uses is no matter of rows against columns.
        costless = self.diagonal is not None and form in ("auto", "sketch", "average_sketch")
        self.form = "average" if costless else "batch" if form == "auto" else form
        self.rank: int | None = None
        self.state: dict[str, Tensor] = {}
        self.refreshed = -1
        self.turned: Tensor | float = 0.0
        self.last: BatchInverse | None = None

    def clear(self) -> None:
        """Forget the inputs recorded since the last step."""
        self.seen = False
        self.sums: dict[str, Tensor] = {}
        self.rows: list[Rows] = []
        self.counts: dict[str, Tensor | float] = {}
        self._divided = False
        self._calls: WeakSet[Call] = WeakSet()
        self._backward: Backward | None = None

    def record(self, call: "Call", gradient: Tensor) -> None:
        """Add the inputs of one call, whose output has got a gradient: the module's input, or query, key and value where they differ."""
        if call in self._calls:  # a second backward through one graph: the inputs count once
            self.rows = [Rows(row.z, None) for row in self.rows]
            return
        dropped = self.weight.grad is None and not hasattr(
            self.weight, "device_mesh"
        )  # a sharded one is in the making elsewhere
        if dropped and self._backward is not None and self._backward.finished:
            self.clear()  # the gradient that the inputs so far made was dropped
        layer = call.layer
        if len(call.streams) == 3 and isinstance(layer, PackedProjection) and layer.groups == 1:
            self._split(layer)
        z, n = layer.collect([(x.to(self.dtype) if x.is_floating_point() else x, beside) for x, beside in call.streams])
        if not z.numel() or not any(x.numel() for x, _ in call.streams):
            return  # an expert that no token was routed to
        self.seen = True
        self._calls.add(call)
        self._backward = Backward.running()
        if layer.diagonal:
            self._add("diagonal", z.to(self.dtype), n)
            return
        if call.rounded is not None and z.dtype == torch.float32 and not self.sketched:
            z = z.to(call.rounded)  # as the layer has it: their products, added up in float32, cost a tenth
        self.counts["matrix"] = self.counts.get("matrix", 0.0) + n
        if self.keeps_rows and not self.sums:
            d = layer.output_rows(gradient) if not self.sketched and call.whole and not z.is_cuda else None
            self.rows.append(Rows(z, None if d is None else d.to(self.dtype)))
            if not self.sketched and sum(rows.z.shape[1] for rows in self.rows) >= z.shape[2]:
                self.fold()
        else:
            self._add("matrix", self._backward.products.of(z), None)

    def _add(self, key: str, total: Tensor, n: Tensor | float | None) -> None:
        self.sums[key] = self.sums[key] + total if key in self.sums else total
        if n is not None:
            self.counts[key] = self.counts.get(key, 0.0) + n

    def fold(self) -> None:
        """Add up the inputs that were kept: from as many of them as they are long, their sum of products is the smaller thing."""
        for z, _ in self.rows:
            self._add("matrix", self._backward.products.of(z) if self._backward else gram(z.mT), None)
        self.rows = []

    def _split(self, layer: Layer) -> None:
        """Give query, key and value a second moment each, equal to the shared one so far."""
        assert isinstance(layer, PackedProjection)
        layer.split()
        for store in (self.sums, self.state):
            for key, tensor in store.items():
                store[key] = tensor.expand(3, *tensor.shape[1:]).clone()
        self.rows = [Rows(z.expand(3, -1, -1), None) for z, _ in self.rows]

    @property
    def dim(self) -> int:
        """Length of an input vector."""
        return (self.matrix or self.layers[0]).dim

    @property
    def keeps_rows(self) -> bool:
        """Whether inputs are kept as they are until there are as many as they are long."""
        return self.form in ("batch", "sketch", "average_sketch") and self.diagonal is None

    @property
    def length(self) -> int:
        """How many inputs are kept as they are; as many as they are long where their products were added up."""
        return self.dim if self.sums else sum(z.shape[1] for z, _ in self.rows)

    def fill_rows(self, groups: int, length: int) -> None:
        """Make the rows one tensor [groups, length, d] and the count one of full shape, zeros where nothing was recorded."""
        assert self.matrix is not None
        if groups > self.matrix.groups:
            self._split(self.matrix)
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.weight.device}
        rows = torch.zeros(groups, length, self.dim, **options)
        if self.rows:
            z = torch.cat([z for z, _ in self.rows], 1)
            rows[:, : z.shape[1]] = z
        self.rows = [Rows(rows, None)]
        self.counts = {"matrix": self._count("matrix", groups).clone()}

    def fill(self, groups: int) -> None:
        """Make sums and counts tensors of full shape, zeros where nothing was recorded, to be added over ranks."""
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.weight.device}
        self.fold()
        if self.matrix is not None:
            if groups > self.matrix.groups:
                self._split(self.matrix)
            shape = (groups, self.matrix.dim, self.matrix.dim)
            self.sums["matrix"] = (
                self.sums["matrix"].clone() if "matrix" in self.sums else torch.zeros(shape, **options)
            )
        if self.diagonal is not None:
            self.sums.setdefault("diagonal", torch.zeros(self.diagonal.dim, **options))
        for key in self.sums:
            self.counts[key] = self._count(key, groups if key == "matrix" else 1).clone()

    def inputs_seen(self) -> Tensor:
        """How many inputs were recorded since the last step [groups], at least 1 where a mask left none."""
        return self._count("matrix", self.groups, 1)

    def _count(self, key: str, length: int, least: float = 0) -> Tensor:
        """How many inputs were recorded since the last step, but at least ``least``, as a tensor [length]."""
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.weight.device}
        count = self.counts.get(key, 0.0)
        if isinstance(count, Tensor):
            return count.to(**options).clamp_min(least).expand(length)
        # Filled in where it is wanted: a number that is copied to a GPU is waited for.
        return torch.full((length,), max(count, least), **options)

    def products(self) -> tuple[Tensor, bool]:
        """``Z^T Z`` [groups, d, d] of the inputs recorded since the last step, and whether it was divided by their number already."""
        self.fold()
        return self.sums["matrix"], self._divided

    def batch_moments(self) -> dict[str, Tensor]:
        """The second moments of the inputs recorded since the last step."""
        self.fold()
        if not self._divided:
            for key, total in self.sums.items():
                count = self.counts[key]
                if isinstance(count, Tensor):
                    count = count.to(total).clamp_min(1)
                    count = count.view(-1, 1, 1) if key == "matrix" else count
                self.sums[key] = total / (count if isinstance(count, Tensor) else max(count, 1))
            self._divided = True
        return dict(self.sums)

    def average(self, moments: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
        """The running average with ``moments`` added; the first batch counts whole, so there is no bias to correct. What a mask left
        without an input stays as it was."""
        moved = {}
        for key, moment in moments.items():
            if key not in self.state:
                moved[key] = self._first(key, moment)
                continue
            kept = 0.0 if self.form == "batch" else decay
            weight: Tensor | float = kept
            count = self.counts[key]
            if isinstance(count, Tensor):
                weight = torch.where(count > 0, torch.full_like(count, kept, dtype=moment.dtype), 1.0)
                weight = weight.view(-1, 1, 1) if key == "matrix" else weight
            moved[key] = moment.lerp(self.value(key), weight) if isinstance(weight, Tensor) or weight else moment
        return moved

    def _first(self, key: str, moment: Tensor) -> Tensor:
        """A first moment: what an expert that no token was routed to begins with is the mean of the others'."""
        if not isinstance(self.matrix, Experts):
            return moment
        there = torch.as_tensor(self.counts[key], device=moment.device) > 0
        mean = moment.sum(0, keepdim=True) / there.sum().clamp_min(1)
        return torch.where(there.view(-1, 1, 1), moment, mean)

    def trace_mean(self) -> Tensor:
        """tr(S)/d for each group [groups], the scale of the damping; 1 where every input was zero."""
        mean = torch.zeros((), dtype=self.dtype, device=self.weight.device)
        if "matrix" in self.state:
            mean = mean + self.pooled(self.value("matrix").diagonal(dim1=-2, dim2=-1).mean(-1))
        if "diagonal" in self.state:
            mean = mean + self.state["diagonal"].mean()
        return torch.where(mean > 0, mean, torch.ones_like(mean))

    def pooled(self, traces: Tensor) -> Tensor:
        """Traces [groups] with those of the blocks of one layer set to their mean: the damping is relative to the whole layer's S."""
        return traces.mean().expand_as(traces) if isinstance(self.matrix, Blocks) else traces


def rank_of(dim: int, rank: int | str) -> int | None:
    """How many leading directions of a moment of size ``dim`` are treated one by one; None: all of them."""
    if dim <= 128:
        return None
    kept = max(16, dim // 32) if isinstance(rank, str) else rank
    return kept if 2 * kept < dim else None  # from there on the whole inverse is the cheaper multiplication
