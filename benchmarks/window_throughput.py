"""Windows a second, beside Diffusion Policy's `SequenceSampler` and robomimic's `SequenceDataset` under torch's DataLoader.

Same data, same windows in the same shuffled order, same number of workers, every batch checked equal before anything is timed. The arms
take turns round by round, so that whatever else the machine does meets all alike; a ratio is the median over rounds.

    python benchmarks/window_throughput.py --pusht pusht_cchi_v7_replay.zarr.zip --diffusion-policy ../diffusion_policy --json FILE
    python benchmarks/window_throughput.py --stream 10      # train on a synthetic image store of 10 GiB and say what it takes in memory

Without --pusht the data are synthetic, of PushT's sizes. A peer that is not there is left out: Diffusion Policy needs its checkout
and numba, robomimic its package.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from dopr_robot.datasets import Attributes, Episode, Recording, Store, Windows, batch_indices, write_store
from dopr_robot.datasets.formats import convert

TO, H = 2, 16
TA = H - TO + 1  # the padding under which all three have the same windows
BATCH = 64
EPISODES = 30

Batches = Callable[[list[np.ndarray], int], Iterator[dict[str, Any]]]


def make_store(folder: Path, pusht: Path | None, images: bool) -> Store:
    """PushT's first episodes with uint8 images, or noise of the same sizes."""
    path = folder / f"{'images' if images else 'low'}.zarr"
    keys = ["state", "action", *(["img"] if images else ["keypoint"])]

    def episodes() -> Iterator[Episode]:
        rng = np.random.default_rng(0)
        source = Store.open(pusht) if pusht else None
        for index in range(EPISODES):
            if source is not None:
                arrays = source.episode(index, keys)
            else:
                n = int(rng.integers(50, 250))
                arrays = {"state": rng.normal(size=(n, 5)).astype("f4"), "action": rng.normal(size=(n, 2)).astype("f4")}
                arrays |= (
                    {"img": rng.integers(0, 256, (n, 96, 96, 3))}
                    if images
                    else {"keypoint": rng.normal(size=(n, 9, 2)).astype("f4")}
                )
            if images:
                arrays["img"] = arrays["img"].astype(np.uint8)
            yield Episode(arrays)

    observations = tuple(key for key in keys if key != "action")
    return write_store(Recording(Attributes(control_hz=10, observations=observations), episodes()), path)


def tensors(batch: Any) -> dict[str, Any]:
    return {
        "observation": {key: torch.from_numpy(value) for key, value in batch["observation"].items()},
        "action": torch.from_numpy(batch["action"]),
    }


def ours(store: Store, memory_bytes: int = 2**40) -> Batches:
    windows = Windows(
        store, store.observations, n_obs_steps=TO, horizon=H, n_action_steps=TA, memory_bytes=memory_bytes
    )

    def batches(order: list[np.ndarray], workers: int) -> Iterator[dict[str, Any]]:
        stream = windows.ahead(order, threads=workers) if workers else order
        for indices in stream:
            yield tensors(windows.batch(indices))

    return batches


def loader(dataset: Dataset, order: list[np.ndarray], workers: int) -> DataLoader:
    return DataLoader(dataset, batch_sampler=[list(map(int, indices)) for indices in order], num_workers=workers)


def diffusion_policy(store: Store, checkout: Path) -> Batches:
    sys.path.insert(0, str(checkout))
    from diffusion_policy.common.replay_buffer import ReplayBuffer
    from diffusion_policy.common.sampler import SequenceSampler

    buffer = ReplayBuffer({"data": store.read(), "meta": {"episode_ends": store.episode_ends}})
    observations = store.observations
    # key_first_k is its own way to leave out the observations that nobody looks at.
    sampler = SequenceSampler(
        buffer, H, TO - 1, TA - 1, keys=[*observations, "action"], key_first_k=dict.fromkeys(observations, TO)
    )

    class Windowed(Dataset):
        def __len__(self) -> int:
            return len(sampler)

        def __getitem__(self, index: int) -> dict[str, Any]:
            found = sampler.sample_sequence(index)
            return {
                "observation": {key: torch.from_numpy(found[key][:TO]) for key in observations},
                "action": torch.from_numpy(found["action"]),
            }

    def batches(order: list[np.ndarray], workers: int) -> Iterator[dict[str, Any]]:
        yield from loader(Windowed(), order, workers)

    return batches


def robomimic(store: Store, folder: Path, cached: bool) -> Batches:
    from robomimic.utils.dataset import SequenceDataset

    file = folder / f"{Path(store.path).stem}.hdf5"
    if not file.exists():
        convert(store.path, file, write_as="robomimic")
    dataset = SequenceDataset(
        str(file),
        obs_keys=tuple(store.observations),
        dataset_keys=("actions",),
        frame_stack=TO,
        seq_length=TA,
        pad_frame_stack=True,
        pad_seq_length=True,
        hdf5_cache_mode="all" if cached else None,
        hdf5_use_swmr=False,
        load_next_obs=False,
    )

    def batches(order: list[np.ndarray], workers: int) -> Iterator[dict[str, Any]]:
        for batch in loader(dataset, order, workers):
            # It reads an observation at every step of the window; a policy looks at the first To.
            yield {
                "observation": {key: value[:, :TO] for key, value in batch["obs"].items()},
                "action": batch["actions"],
            }

    return batches


def check_equal(first: Batches, second: Batches, order: list[np.ndarray]) -> None:
    for a, b in zip(first(order[:5], 0), second(order[:5], 0), strict=True):
        assert torch.equal(a["action"], b["action"].to(a["action"].dtype))
        for key, value in a["observation"].items():
            assert torch.equal(value, b["observation"][key].to(value.dtype)), key


def compare(
    name: str, own: Batches, peers: dict[str, Batches], order: list[np.ndarray], workers: int, rounds: int
) -> list[dict]:
    arms = {"ours": own, **peers}
    for peer in peers.values():
        check_equal(own, peer, order)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, batches in arms.items():
            start = time.perf_counter()
            count = sum(len(batch["action"]) for batch in batches(order, workers))
            times[arm].append((time.perf_counter() - start) / count)
    rows = []
    for peer in peers or {"": own}:
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times.get(peer, times["ours"]), strict=True))
        speeds = {arm: 1 / statistics.median(times[arm]) for arm in ("ours", peer) if arm}
        row = {"name": f"{name}, {workers} workers" + f", beside {peer}" * bool(peer), "ours": speeds["ours"]}
        row |= {"peer": speeds.get(peer), "ratio": ratio if peer else None}
        print(
            f"{row['name']:72} {row['ours']:10.0f} windows/s" + (f"  {row['peer']:8.0f}  x{ratio:.1f}" if peer else "")
        )
        rows.append(row)
    return rows


def throughput(args: argparse.Namespace) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for images in (False, True):
            store = make_store(folder, args.pusht, images)
            label = "PushT" * bool(args.pusht) or "synthetic"
            label += " images 96x96" if images else " low-dimensional"
            peers: dict[str, Batches] = {}
            from_disk: dict[str, Batches] = {}
            if args.diffusion_policy:
                peers["Diffusion Policy"] = diffusion_policy(store, args.diffusion_policy)
            with suppress(ImportError):
                peers["robomimic"] = robomimic(store, folder, cached=True)
                from_disk["robomimic"] = robomimic(store, folder, cached=False)
            own = ours(store)
            windows = Windows(store, [], n_obs_steps=TO, horizon=H, n_action_steps=TA)
            order = batch_indices(len(windows), BATCH, 0, 0)[: args.batches]
            for workers in args.workers:
                rows += compare(f"{label}, in memory", own, peers, order, workers, args.rounds)
                if images:
                    rows += compare(f"{label}, from disk", ours(store, 0), from_disk, order, workers, args.rounds)
    return rows


def stream(gib: float, steps: int, folder: Path | None) -> list[dict]:
    """Resident memory that training on an image store takes beyond the model, at its highest."""
    frames = 303  # a shard
    shape = (frames, 96, 96, 3)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "large.zarr"
        with Store.create(path, Attributes(observations=("img",))) as store:
            image = rng.integers(0, 256, shape, np.uint8)
            store.append({"img": image, "action": rng.normal(size=(frames, 2)).astype("f4")})
        _repeat(path, frames, max(2, round(gib * 2**30 / np.prod(shape))))
        store = Store.open(path)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(6, 32, 8, 4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 32, 4, 2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.LazyLinear(2 * H),
        )
        optimizer = None
        windows, order = None, iter(())
        before, peak, start = 0, 0, 0.0
        for _ in range(steps + 1):
            if windows is None:
                images, actions = torch.zeros(BATCH, TO, 96, 96, 3), torch.zeros(BATCH, H, 2)
            else:
                batch = tensors(windows.batch(next(order)))
                images, actions = batch["observation"]["img"], batch["action"]
            loss = (
                (model(images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255).view(BATCH, H, 2) - actions)
                .square()
                .mean()
            )
            loss.backward()
            optimizer = optimizer or torch.optim.AdamW(model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            if windows is None:  # what the model, its optimizer and a step take by themselves
                before, start = resident(), time.perf_counter()
                windows = Windows(store, ["img"], n_obs_steps=TO, horizon=H, n_action_steps=TA, memory_bytes=64 * 2**20)
                assert windows.streamed == ["img"]
                order = windows.ahead(batch_indices(len(windows), BATCH, 0, 0))
            peak = max(peak, resident())
        taken, speed = (peak - before) / 2**30, steps * BATCH / (time.perf_counter() - start)
        size = store.num_steps * np.prod(shape[1:]) / 2**30
        print(
            f"{size:.2f} GiB of images: {taken:.3f} GiB beyond the model at its highest, {steps} steps, {speed:.0f} windows/s with training"
        )
        return [{"name": f"GiB beyond the model, store of {size:.2f} GiB", "ours": taken, "peer": None, "ratio": None}]


def _repeat(path: Path, frames: int, episodes: int) -> None:
    """Copies of the first episode, whose images fill one shard, to so many episodes: as large as if each had been compressed."""
    group = zarr.open_group(path, mode="r+")
    image, action = group["data/img"], group["data/action"]
    assert image.shards[0] == frames
    actions = np.tile(action[:], (episodes, 1))
    for array in (image, action):
        array.resize((frames * episodes, *array.shape[1:]))
    action[:] = actions
    for episode in range(1, episodes):
        file = path / "data" / "img" / image.metadata.encode_chunk_key((episode, 0, 0, 0))
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / "data" / "img" / image.metadata.encode_chunk_key((0, 0, 0, 0)), file)
    for name, values in {"seed": np.full(episodes, -1), "success": np.full(episodes, -1)}.items():
        group[f"meta/{name}"].resize((episodes,))
        group[f"meta/{name}"][:] = values
    group["meta/episode_ends"].resize((episodes,))
    group["meta/episode_ends"][:] = frames * np.arange(1, episodes + 1)


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pusht", type=Path, help="Diffusion Policy's PushT store")
    parser.add_argument("--diffusion-policy", type=Path, help="a checkout of real-stanford/diffusion_policy")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream", type=float, metavar="GIB", help="measure memory on a store of so many GiB instead")
    parser.add_argument("--steps", type=int, default=200, help="training steps of --stream")
    parser.add_argument("--folder", type=Path, help="where --stream makes its store")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = stream(args.stream, args.steps, args.folder) if args.stream else throughput(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
