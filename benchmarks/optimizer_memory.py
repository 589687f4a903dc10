"""What preconditioning will hold for a model that nobody has to load: the table of docs/optimizer.md, for Llama-3.1-8B's shapes.

    python benchmarks/optimizer_memory.py --tokens 8192
    python benchmarks/optimizer_memory.py --form average --json memory.json

The model is made on the meta device. A row is one kind of layer; "all" is the sum over the model, the inputs of the layers at work in one
step included.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dopr_robot.optim import ActivationPreconditioner

GIB = 2**30


class Block(nn.Module):
    """The matrices of one block of a Llama."""

    def __init__(self, hidden: int, inner: int, kv: int) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(hidden, kv, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, hidden, bias=False)


class Llama(nn.Module):
    """The matrices of Llama-3.1-8B: 32 blocks, hidden 4,096, feed-forward 14,336, 8 key-value heads of 128, vocabulary 128,256."""

    def __init__(self, blocks: int = 32, hidden: int = 4096, inner: int = 14336, kv: int = 1024, words: int = 128256):
        super().__init__()
        self.embed = nn.Embedding(words, hidden)
        self.blocks = nn.ModuleList(Block(hidden, inner, kv) for _ in range(blocks))
        self.head = nn.Linear(hidden, words, bias=False)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="average_sketch")
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens a step that S is formed from")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    parser.add_argument("--state-dtype", default=None, choices=["bfloat16"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as [{name, ours, peer, ratio}]")
    options = parser.parse_args()
    rows = table(options.tokens, form=options.form, max_tokens=options.max_tokens, state_dtype=options.state_dtype)
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
