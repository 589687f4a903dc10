"""What preconditioning will hold for a model that nobody has to load: the table of docs/optimizer.md, for Llama-3.1-8B's shapes.

    python benchmarks/optimizer_memory.py --tokens 8192
    python benchmarks/optimizer_memory.py --form average --json memory.json
    python benchmarks/optimizer_memory.py --measure --tokens 512 --max-tokens 64

The model is made on the meta device. A row is one kind of layer; "all" is the sum over the model, the inputs of the layers at work in one
step included. ``--measure`` takes steps of a small one on a CPU (Linux with glibc), each form in turn, and prints the process's own peak
inside `step()`, over what it held before there was an optimizer: S, the bytes of all layers' second moments, is the unit.
"""

import argparse
import ctypes
import gc
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim import ActivationPreconditioner, DoPr

GIB = 2**30
CYCLE = 4  # steps between the refreshes of a layer
FORMS_HERE = ("batch", "average", "low_rank", "average_sketch")


class Block(nn.Module):
    """The matrices of one block of a Llama."""

    def __init__(self, hidden: int, inner: int, kv: int) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(hidden, kv, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """No attention over positions: which inputs each matrix gets is all that counts here."""
        value = torch.cat([self.k(x), self.v(x)], -1)
        x = x + self.o(self.q(x) * value.repeat(1, self.q.out_features // value.shape[1]))
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Llama(nn.Module):
    """The matrices of Llama-3.1-8B: 32 blocks, hidden 4,096, feed-forward 14,336, 8 key-value heads of 128, vocabulary 128,256."""

    def __init__(self, blocks: int = 32, hidden: int = 4096, inner: int = 14336, kv: int = 1024, words: int = 128256):
        super().__init__()
        self.embed = nn.Embedding(words, hidden)
        self.blocks = nn.ModuleList(Block(hidden, inner, kv) for _ in range(blocks))
        self.head = nn.Linear(hidden, words, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def table(tokens: int, **options: Any) -> list[dict[str, Any]]:
    """Rows ``{layer, inputs, count, held, moving, first}`` in bytes, of one kind of layer each: from step to step, what comes to it in a
    step, and all in the first."""
    with torch.device("meta"):
        model = Llama()
        preconditioner = ActivationPreconditioner(model, **options)
    total, rest = preconditioner.memory_usage(tokens), preconditioner.memory_usage(0)
    # At the first step every layer takes its turn.
    first = ActivationPreconditioner(model, update_every=1, **options).memory_usage(tokens)
    kinds: dict[str, dict[str, Any]] = {}
    for factor in preconditioner.factors:
        kind = re.sub(r"\d+", "*", factor.name)
        row = kinds.setdefault(
            kind, {"layer": kind, "inputs": factor.dim * factor.groups, "count": 0, "held": 0, "moving": 0, "first": 0}
        )
        row["count"] += 1
        row["held"] += rest[factor.name]
        row["moving"] += total[factor.name] - rest[factor.name]
        row["first"] += first[factor.name]
    return list(kinds.values())


def measure(form: str, blocks: int, hidden: int, tokens: int, max_tokens: int) -> dict[str, float]:
    """What preconditioning holds from step to step, and at most inside the first step and a later one, in bytes; and S."""
    model = Llama(blocks, hidden, hidden * 7 // 2, hidden // 4, words=512)
    optimizer = DoPr(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        model,
        form=form,
        update_every=CYCLE,
        max_tokens=max_tokens if "sketch" in form else None,
    )
    preconditioner = optimizer.preconditioner
    ids = torch.randint(512, (tokens,))

    def backward() -> None:
        nn.functional.cross_entropy(model(ids), ids).backward()
        optimizer.zero_grad(set_to_none=False)  # the gradients stay where they are

    backward()
    side = max(factor.dim for factor in preconditioner.factors if factor.matrix is not None)
    torch.cholesky_inverse(torch.linalg.cholesky(torch.eye(side)))  # room of the library's own
    gc.collect()
    base, peaks = _resident("VmRSS"), []
    for _ in range(1 + CYCLE):
        nn.functional.cross_entropy(model(ids), ids).backward()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        optimizer.step()
        peaks.append(_resident("VmHWM") - base)
        optimizer.zero_grad(set_to_none=False)
    return {
        "S": sum(4 * f.groups * f.dim**2 for f in preconditioner.factors if f.matrix is not None),
        "largest": max(4 * f.dim**2 for f in preconditioner.factors if f.matrix is not None),
        "held": optimizer.memory_usage()["total"],
        "first": peaks[0],
        "later": max(peaks[1:]),
    }


def _resident(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at most since that was reset."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


def print_measured(options: argparse.Namespace) -> None:
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back at once
    print(f"{'form':<16}{'S, MiB':>9}{'largest, S':>12}{'held, S':>9}{'first step, S':>15}{'later, S':>10}")
    for form in FORMS_HERE if options.form is None else [options.form]:
        row = measure(form, options.blocks, options.hidden, options.tokens, options.max_tokens)
        shares = {key: value / row["S"] for key, value in row.items()}
        figures = f"{shares['largest']:>12.2f}{shares['held']:>9.2f}{shares['first']:>15.2f}{shares['later']:>10.2f}"
        print(f"{form:<16}{row['S'] / 2**20:>9.1f}{figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--form", default=None, help="average_sketch, where shapes are computed with; all, where it is measured"
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens a step that S is formed from")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    parser.add_argument("--state-dtype", default=None, choices=["bfloat16"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as [{name, ours, peer, ratio}]")
    parser.add_argument("--measure", action="store_true", help="take steps, and look at the process's memory")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    if options.measure:
        print_measured(options)
        return
    rows = table(
        options.tokens,
        form=options.form or "average_sketch",
        max_tokens=options.max_tokens,
        state_dtype=options.state_dtype,
    )
    print(f"{'layer':<22}{'inputs':>8}{'layers':>8}{'held, GiB':>12}{'+ in a step':>14}{'first step':>14}")
    rows.append(
        {"layer": "all", "inputs": 0, "count": 0} | {k: sum(r[k] for r in rows) for k in ("held", "moving", "first")}
    )
    for row in rows:
        sizes = f"{row['held'] / GIB:>12.3f}{row['moving'] / GIB:>14.3f}{row['first'] / GIB:>14.3f}"
        print(f"{row['layer']:<22}{row['inputs'] or '':>8}{row['count'] or '':>8}{sizes}")
    if options.json:
        whole = table(options.tokens, form="average", max_tokens=options.max_tokens)
        peers = {row["layer"]: row["held"] + row["moving"] for row in whole}
        records = [
            {"name": row["layer"], "ours": row["held"] + row["moving"], "peer": peers[row["layer"]]} for row in rows
        ]
        records = [record | {"ratio": record["ours"] / record["peer"]} for record in records]
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
