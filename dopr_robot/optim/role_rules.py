"""What each weight of a model is: a hidden matrix, an embedding, a head, ...

A model is read as it stands, without being run: by what its modules are (an embedding, a convolution, an attention), by what they are
called (``head``, ``time_embed``, ``adaLN_modulation``, ...), by their place in a ``Sequential`` or in a list of blocks, and last by widths:
whether any layer before gives what a layer takes, and any layer behind it takes what it gives.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}

HIDDEN = "hidden matrix"
_INPUT, _EMBEDDING, _OUTPUT = "input layer", "embedding", "output head"

# What the field calls them. A name is cut into words: "time_embed" and "TimestepEmbedder" are {time, embed} and {timestep, embedder}.
_TIME = {"time", "timestep", "timesteps", "temb"}
_TIME_OF = {"t", "sigma", "step"}  # with another word beside them
_BESIDE_TIME = {
    "emb",
    "embed",
    "embedder",
    "embedding",
    "embeddings",
    "mlp",
    "proj",
    "projection",
    "encoder",
    "in",
    "out",
    "net",
}
_BESIDE_TIME |= {"action", "text", "diffusion", "noise", "pos", "sinusoidal", "cond", "linear", "fc", "layer"}
_MODULATION = {"modulation", "modulate", "ada", "adaln", "adagn", "film", "cond"}
_EMBED = {"emb", "embed", "embedder", "embedding", "embeddings", "stem"}
_HEAD = {"head", "heads", "classifier", "logits", "score", "unembed", "readout"}
_ENCODER = {"encoder", "encoders", "backbone", "backbones", "trunk", "body"}
# How many matrices lie on top of one another in a linear layer of such a name, where it gives so many times what it takes.
_STACKED = {"qkv": 3, "wqkv": 3, "qkv_proj": 3, "to_qkv": 3, "c_attn": 3, "kv": 2, "to_kv": 2}
_HALVES = {"gate_up_proj", "gate_up", "w12"}
_WIDE = 16  # no picture and no action has so many channels: what takes them takes them from another layer


class _Layer(NamedTuple):
    """A weight as a map from vectors of length ``takes`` to vectors of length ``gives``."""

    path: str
    module: nn.Module
    weight: nn.Parameter
    takes: int
    gives: int
    parts: int = 1
    transposed: bool = False


class Found(NamedTuple):
    """A weight's role, and how it holds its matrices, see :class:`~dopr_robot.optim.roles.Role`."""

    role: str
    parts: int = 1
    transposed: bool = False


def find_roles(model: nn.Module) -> dict[nn.Parameter, Found]:
    """What the weights of the layers that are known are."""
    modules = dict(model.named_modules())
    layers = [layer for path, module in modules.items() for layer in _layers(path, module)]
    roles = _Places(layers, [_named_role(layer, modules) for layer in layers], modules).decide()
    found: dict[nn.Parameter, Found] = {}
    for layer, role in zip(layers, roles, strict=True):
        # A weight of two uses is hidden where both are.
        if layer.weight not in found or (found[layer.weight].role == HIDDEN and role != HIDDEN):
            found[layer.weight] = Found(role, layer.parts, layer.transposed)
    return found


def find_input_layers(model: nn.Module) -> set[nn.Parameter]:
    """The weights that take the model's own inputs, embeddings among them; of several models in a list or a dict, those of each.

    Raises:
        ValueError: where there is none by these rules.
    """
    parts = list(model.children()) if isinstance(model, nn.ModuleList | nn.ModuleDict) else [model]
    roles = {weight: found.role for part in parts for weight, found in find_roles(part).items()}
    first = {weight for weight, role in roles.items() if role in (_INPUT, _EMBEDDING)}
    if not first:
        raise ValueError(
            f"input_damping: no layer of {type(parts[0]).__name__} is known to take its inputs: "
            "give those that do in a param group with a damping of its own"
        )
    return first


def _layers(path: str, module: nn.Module) -> Iterator[_Layer]:
    """The matrices that ``module`` itself holds, without its children."""

    def parameter(name: str) -> nn.Parameter | None:
        found = module._parameters.get(name)
        return None if found is None or isinstance(found, nn.UninitializedParameter) else found

    weight = parameter("weight")
    if isinstance(module, nn.MultiheadAttention):
        for name, parts in (("in_proj_weight", 3), ("q_proj_weight", 1), ("k_proj_weight", 1), ("v_proj_weight", 1)):
            if (weight := parameter(name)) is not None:
                yield _Layer(path, module, weight, weight.shape[1], weight.shape[0] // parts, parts)
    elif gates := next((number for kind, number in _GATES.items() if isinstance(module, kind)), 0):
        for name, each in module._parameters.items():
            if each is not None and each.dim() == 2:
                parts = 1 if "weight_hr" in name else gates  # the projection of an LSTM
                yield _Layer(path, module, each, each.shape[1], each.shape[0] // parts, parts)
    elif "experts" in _words(path.rpartition(".")[2]):
        for each in module._parameters.values():
            if each is not None and each.dim() == 3:
                yield _Layer(path, module, each, each.shape[2], each.shape[1], each.shape[0])
    elif weight is None or weight.dim() < 2:
        return
    elif isinstance(module, nn.Linear):
        parts = _stacked(path, module, weight.shape[1], weight.shape[0])
        yield _Layer(path, module, weight, weight.shape[1], weight.shape[0] // parts, parts)
    elif isinstance(module, _CONVOLUTIONS):
        groups = int(module.groups)
        yield _Layer(path, module, weight, weight.shape[1] * groups, weight.shape[0], groups)
    elif isinstance(module, _TRANSPOSED):
        yield _Layer(path, module, weight, weight.shape[0], weight.shape[1] * int(module.groups), 1, True)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield _Layer(path, module, weight, 0, weight.shape[1])
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight.dim() == 2:
        parts = _stacked(path, module, weight.shape[0], weight.shape[1])
        yield _Layer(path, module, weight, weight.shape[0], weight.shape[1] // parts, parts, True)


def _stacked(path: str, module: nn.Module, takes: int, gives: int) -> int:
    """How many matrices of equal height a linear layer's weight holds: by its attribute ``stacked``, or by its name, as in GPT-2 and timm.
    (Where query, key and value take turns by heads, as in BLOOM, or are of different height, the weight is one matrix.)
    """
    name = path.rpartition(".")[2].lower()
    by_name = _STACKED.get(name, 1)
    if by_name > 1 and gives == by_name * takes:
        return by_name
    return 2 if name in _HALVES and gives % 2 == 0 else int(getattr(module, "stacked", 1))


def _words(name: str) -> set[str]:
    """
    >>> sorted(_words("adaLN_modulation"))
    ['adaln', 'modulation']
    """
    cut = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower()
    return {word.rstrip("0123456789") for word in cut.split("_")} - {""}


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _climb(path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """A layer's path and module, then those of what it is part of, below the model itself."""
    while path:
        yield path, modules[path]
        path = path.rpartition(".")[0]


def _within(path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The same up to the block that it stands in: an entry of a container that is no layer by itself."""
    for each, module in _climb(path, modules):
        yield each, module
        parent = modules[each.rpartition(".")[0]]
        if (
            isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict)
            and next(module.children(), None) is not None
        ):
            return


def _named_role(layer: _Layer, modules: Mapping[str, nn.Module]) -> str | None:
    """By what the layer is, and by what it and what it is part of are called."""
    module, weight = layer.module, layer.weight
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _EMBEDDING
    if isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels > 1:
        return "kernels of single channels"
    if min(weight.shape[0], weight.numel() // weight.shape[0]) == 1:
        return "matrix of one row or column"
    names = [(path.rpartition(".")[2], part) for path, part in _within(layer.path, modules)]
    for name, part in [each for each in names if not each[0].isdigit()][:3]:
        own, kind = _words(name), set() if part is module else _words(type(part).__name__)
        if any(_says_time(words) for words in (own, kind)):
            return "time embedding"
        if own & _MODULATION or "ada" in kind:
            return "modulation"
        if own & _EMBED or name == "conv_in":
            return _INPUT
        if own & {"router"}:
            return "router"
    return _OUTPUT if _is_head(layer.path, modules) else None


def _says_time(words: set[str]) -> bool:
    named = words & _TIME or (words & _TIME_OF and words & _BESIDE_TIME)
    return bool(named) and words <= _TIME | _TIME_OF | _BESIDE_TIME


def _is_head(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a layer is called a head, or is the last of a ``Sequential``, or an entry of a list or dict, that is."""
    for each, module in _climb(path, modules):
        name = each.rpartition(".")[2].lower().rstrip("0123456789")
        if name == "conv_out" or name.rpartition("_")[2] in _HEAD:
            return True
        parent = modules[each.rpartition(".")[0]]
        if not (
            isinstance(parent, nn.ModuleDict | nn.ModuleList)
            or (_is_sequential(parent) and not _beside(module, parent)[1])
        ):
            return False
    return False


def _beside(module: nn.Module, container: nn.Module) -> tuple[bool, bool]:
    """Whether a container has matrices before the entry, and behind it."""
    entries = list(container._modules.values())
    place = next(n for n, entry in enumerate(entries) if entry is module)

    def any_matrix(some: Sequence[nn.Module | None]) -> bool:
        return any(p.dim() > 1 for entry in some if entry is not None for p in entry.parameters())

    return any_matrix(entries[:place]), any_matrix(entries[place + 1 :])


def _in_blocks(modules: Mapping[str, nn.Module]) -> set[str]:
    """Paths of the blocks of a stack: entries of a ``ModuleList``, or of a kind that a ``Sequential`` has several of, which are neither a
    layer by themselves nor a plain row of layers (a tower, like each of several critics, that has an input and an output of its own)."""
    blocks = set()
    for path, module in modules.items():
        parent = modules[path.rpartition(".")[0]]
        plain = _is_sequential(module) and not any(next(entry.children(), None) for entry in module.children())
        if not path or plain or next(module.children(), None) is None:
            continue
        alike = sum(type(entry) is type(module) for entry in parent.children())
        if isinstance(parent, nn.ModuleList) or (_is_sequential(parent) and alike > 1):
            blocks.add(path)
    return blocks


class _Places:
    """Who gives what a layer takes, and who takes what it gives."""

    def __init__(self, layers: Sequence[_Layer], roles: Sequence[str | None], modules: Mapping[str, nn.Module]) -> None:
        self.layers, self.roles, self.modules = layers, list(roles), modules
        blocks = _in_blocks(modules)
        self.in_block = [any(path in blocks for path, _ in _climb(layer.path, modules)) for layer in layers]

    def decide(self) -> list[str]:
        """The role of every layer."""
        open_ = [n for n, role in enumerate(self.roles) if role is None]
        # Unread by any is an output wherever it is registered, and reads what lies before it wherever that is.
        for read_by_all in (True, False):
            for n in open_:
                if self.roles[n] is None and not self.in_block[n] and not self._is_read(n, by_all=read_by_all):
                    self.roles[n] = _OUTPUT
        for n in open_:
            if self.roles[n] is None and not self._is_fed(n):
                self.roles[n] = _INPUT
        return [role or HIDDEN for role in self.roles]

    def _in_sequence(self, n: int) -> tuple[bool, bool]:
        """Whether a matrix comes before it, and behind it, in the ``Sequential`` that it is part of."""
        before = behind = False
        for path, module in _climb(self.layers[n].path, self.modules):
            parent = self.modules[path.rpartition(".")[0]]
            if not _is_sequential(parent):
                break
            earlier, later = _beside(module, parent)
            before, behind = before or earlier, behind or later
        return before, behind

    def _is_read(self, n: int, *, by_all: bool) -> bool:
        layer = self.layers[n]
        inside = any(_words(path.rpartition(".")[2]) & _ENCODER for path, _ in _climb(layer.path, self.modules))
        if inside or self._in_sequence(n)[1]:
            return True
        readers = [
            other
            for m, other in enumerate(self.layers)
            if m != n and self.roles[m] != "time embedding" and (by_all or m > n or self.roles[m] == _OUTPUT)
        ]
        convolution = isinstance(layer.module, _CONVOLUTIONS + _TRANSPOSED)
        return any(other.takes == layer.gives or (convolution and other.takes % layer.gives == 0) for other in readers)

    def _is_fed(self, n: int) -> bool:
        layer = self.layers[n]
        convolution = isinstance(layer.module, _CONVOLUTIONS + _TRANSPOSED)
        if (self.in_block[n] and not convolution) or self._in_sequence(n)[0]:
            return True
        before = [other for m, other in enumerate(self.layers[:n]) if self.roles[m] not in (_OUTPUT, "time embedding")]
        spatial = [other.gives for other in before if isinstance(other.module, _CONVOLUTIONS + _TRANSPOSED)]
        if any(other.gives == layer.takes for other in before):
            return True
        if any(layer.takes % gives == 0 for gives in spatial if not convolution or gives >= _WIDE):
            return True  # a picture laid out as a vector, or features side by side
        if convolution and _is_sum(layer.takes, {gives for gives in spatial if gives >= _WIDE}):
            return True
        # A module registered before the one whose features it reads.
        behind = [
            other
            for m, other in enumerate(self.layers)
            if m > n and (self.in_block[m] or isinstance(other.module, _CONVOLUTIONS))
        ]
        return layer.takes >= _WIDE and any(other.gives == layer.takes for other in behind)


def _is_sum(number: int, parts: Collection[int]) -> bool:
    """Whether ``number`` is a sum of ``parts``, each as often as needed: channels of several layers side by side."""
    reached = {0}
    for total in range(1, number + 1):
        if any(total - part in reached for part in parts):
            reached.add(total)
    return number in reached
