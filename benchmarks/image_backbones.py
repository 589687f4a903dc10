"""What an image costs in a backbone, IMPALA's beside ResNet-18: parameters, and milliseconds of processor time acting and training.

84 x 84 pictures, the default crop, spatial softmax and projection included; batches of 32, the backbones in turn, the median over rounds.
The last row is three cameras that share weights in one batch beside one camera after the other, acting at batch 1.

    python benchmarks/image_backbones.py --threads 1 --json backbones.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dopr_robot.policies import ArraySpec
from dopr_robot.policies.encoders import Encoder, EncoderConfig

SIDE, BATCH = 84, 32


def encoder(backbone: str, cameras: int = 1) -> Encoder:
    observations = {f"camera{number}": ArraySpec((SIDE, SIDE, 3), "uint8") for number in range(cameras)}
    return Encoder(observations, EncoderConfig(backbone=backbone, shared=True))


def pictures(network: Encoder, batch: int) -> dict[str, torch.Tensor]:
    return {key: torch.randint(0, 256, (batch, 1, SIDE, SIDE, 3), dtype=torch.uint8) for key in network.keys}


def acting(network: Encoder, batch: int = BATCH) -> Callable[[], Any]:
    seen = pictures(network, batch)

    def call() -> None:
        with torch.inference_mode():
            network.eval()(seen)

    return call


def training(network: Encoder) -> Callable[[], Any]:
    seen = pictures(network, BATCH)
    return lambda: network.train()(seen).square().mean().backward()


def one_by_one(network: Encoder) -> Callable[[], Any]:
    seen = pictures(network, 1)

    def call() -> None:
        with torch.inference_mode():
            for key in network.keys:
                camera: Any = network.parts[key]
                camera(network.backbones["shared"](camera.augment(seen[key]).flatten(0, 1)))

    return call


def in_turn(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Milliseconds of each."""
    spent: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):  # the first warms up
        for call, times in zip(calls, spent, strict=True):
            start = time.process_time()
            call()
            if turn:
                times.append(1e3 * (time.process_time() - start))
    return [statistics.median(times) for times in spent]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, peer = encoder("impala"), encoder("resnet18")
    sizes = [sum(value.numel() for value in each.parameters()) for each in (ours, peer)]
    rows = [{"name": "parameters", "ours": sizes[0], "peer": sizes[1]}]
    for name, make in (("acting, ms an image", acting), ("training, ms an image", training)):
        mine, other = in_turn([make(ours), make(peer)], args.rounds)
        rows.append({"name": name, "ours": mine / BATCH, "peer": other / BATCH})
    three = encoder("impala", cameras=3).eval()
    mine, other = in_turn([acting(three, 1), one_by_one(three)], 5 * args.rounds)
    rows.append({"name": "three shared cameras in one batch, ms", "ours": mine, "peer": other})
    for row in rows:
        row["ratio"] = row["ours"] / row["peer"]
        print(f"{row['name']}: {row['ours']:,.4g}, the peer {row['peer']:,.4g} ({row['ratio']:.3f})")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
