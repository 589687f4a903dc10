"""Whatever is in a file, a command ends with a line: a fuzzer over every reader, checkpoint, record and configuration.

Each case spoils one file of a small whole example and reads it in a process of its own that may use 1 GiB and 30 CPU seconds more.
What it may end with: exit code 0, 1 or 2, and no exception that nobody foresaw. ``--fuzz-cases 10000`` for a long run, ``--fuzz-seed``
for another one; a failure says how to see its case again.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from dopr_robot.cli import UNEXPECTED, main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.datasets.formats import convert
from dopr_robot.errors import DoprError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
MEMORY, CPU_SECONDS, BATCH = 2**30, 30.0, 40
VALUES = [
    None, True, -1, 0, 1, 7, 10**9, 10**30, -(2**63), 0.5, -1e308, float("nan"), float("inf"), "", "text", "../../../x", "\x1b[31mred",
    "a\nb", "1e9", [], {}, [None], {"a": {"b": []}}, [[[[]]]], "x" * 5000, [1] * 2000,
]  # fmt: skip


# How a file is spoiled: bytes and a source of chance to bytes.


def flip(content: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(content or b"\0")
    for _ in range(chance.choice((1, 1, 4, 32))):
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def drop(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content) + 1)
    return content[:start] + content[start + chance.choice((1, 8, 100)) :]


def double(content: bytes, chance: random.Random) -> bytes:
    start, stop = sorted((chance.randrange(len(content) + 1), chance.randrange(len(content) + 1)))
    return content[:stop] + content[start:stop] + content[stop:]


def insert(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    return (
        content[:at]
        + chance.choice((b"\xff\xfe", b"\0" * 64, b"\xe2\x80\xa8", b"}", b"[" * 3000, b"9" * 5000))
        + content[at:]
    )


def blank(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    return content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]


BYTES = (flip, cut, drop, double, insert, blank)


def replace_value(content: bytes, chance: random.Random) -> bytes:
    """One value of a JSON file, or of a line of one, exchanged, doubled or taken away."""
    lines = content.splitlines() if b"\n{" in content.strip() else [content]
    which = chance.randrange(len(lines))
    try:
        tree = json.loads(lines[which])
    except ValueError:
        return flip(content, chance)
    lines[which] = json.dumps(spoil_tree(tree, chance)).encode()
    return b"\n".join(lines) + b"\n"


def spoil_tree(tree: object, chance: random.Random) -> object:
    holder = {"": copy.deepcopy(tree)}
    places: list[tuple] = []

    def walk(inside: object) -> None:
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], dict | list):
                walk(inside[key])

    walk(holder)
    inside, key = chance.choice(places)
    what = chance.randrange(8)
    if what == 0 and inside is not holder:
        del inside[key]
    elif what == 1 and isinstance(inside, list):
        inside.append(inside[key])
    elif what == 2 and isinstance(inside, dict):
        inside[str(chance.choice(VALUES))[:40]] = inside.pop(key)
    elif what == 3:
        other, name = chance.choice(places)
        inside[key] = copy.deepcopy(other[name])
    else:
        inside[key] = chance.choice(VALUES)
    return next(iter(holder.values()), None)


def replace_yaml(content: bytes, chance: random.Random) -> bytes:
    lines = content.decode(errors="replace").splitlines()
    which = chance.randrange(len(lines))
    key, colon, _ = lines[which].partition(":")
    value = chance.choice(
        ["", " null", " []", " {a: b}", " 1e999", " -5", " '", " &a [*a]", " !!python/object:os.system x", " \x07", " 2024-01-01",
         " .nan", " *b", " [1, 2", " text", " 10000000000000000000000", " ${oc.env:HOME}", " ${x}", " ${", " true", " !!int x"]
    )  # fmt: skip
    lines[which] = key + (colon or ":") + value
    return ("\n".join(lines) + "\n").encode()


def replace_hdf5(path: Path, chance: random.Random) -> None:
    """A member or an attribute of an HDF5 file exchanged or taken away."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = chance.choice(names)
        if chance.random() < 0.4 and (holders := [each for each in ["/", *names] if len(file[each].attrs)]):
            about = file[chance.choice(holders)].attrs
            entry = chance.choice(sorted(about))
            value = about[entry]
            if isinstance(value, str) and value.startswith("{"):
                about[entry] = json.dumps(spoil_tree(json.loads(value), chance))
            else:
                about[entry] = chance.choice(["", "text", -1, 10**12, np.zeros(3), np.zeros((0, 2)), 0.5, "{", "[1]"])
            return
        del file[name]
        value = chance.choice(
            [
                None,
                3,
                "text",
                np.zeros(3),
                np.zeros((0, 2)),
                np.zeros((2, 2, 2, 2)),
                np.array([b"a", b"b"]),
                np.full(5, np.nan),
                True,
            ]
        )
        if value is not None:
            file[name] = value


def spoil(folder: Path, only: str | None, chance: random.Random) -> str:
    """Spoil one file under a folder (or the file itself), and say what was done."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob(only or "*") if path.is_file())
    files = [file for file in files if "tensorboard" not in file.parts and file.name != ".lock"]
    texts = [
        file
        for file in files
        if file.suffix in (".json", ".jsonl", ".yaml") or file.name in (".zarray", ".zattrs", ".zgroup")
    ]
    path = chance.choice(texts if texts and chance.random() < 0.7 else files)
    what, kind = chance.random(), path.suffix
    if what < 0.03:
        path.write_bytes(b"")
        return f"{path.name} emptied"
    if what < 0.06:
        path.unlink()
        return f"{path.name} deleted"
    if what < 0.09 and path != folder:
        path.unlink()
        path.mkdir()
        return f"{path.name} a folder"
    if kind == ".hdf5" and what < 0.6:
        replace_hdf5(path, chance)
        return f"{path.name} replace_hdf5"
    how = chance.choice(BYTES)
    if what < 0.75 and path in texts:
        how = replace_yaml if kind == ".yaml" else replace_value
    path.write_bytes(how(path.read_bytes(), chance))
    return f"{path.name} {how.__name__}"


# What is read, and how.


@dataclass(frozen=True)
class Target:
    """``read`` gives an exit code, or None, for what ``make`` built, in one of ``ways`` or fewer; ``only`` of its files are spoiled."""

    make: Callable[[Path], Path]
    read: Callable[[Path, random.Random], int | None]
    only: str | None = None
    ways: int = 12


def make_store(folder: Path) -> Path:
    about = Attributes(control_hz=10, observations=("state", "camera"), carried={"collect": {"noise": 1.0}})
    chance = np.random.default_rng(0)
    with Store.create(folder / "store.zarr", about) as store:
        for seed in range(5):
            arrays = {"state": chance.normal(size=(12, 3)), "action": chance.normal(size=(12, 2)).astype(np.float32)}
            arrays["camera"] = chance.integers(0, 255, (12, 8, 8, 3), np.uint8)
            store.append(arrays, seed=seed, success=True, meta={"name": f"demo {seed}", "mass": 0.5})
    return folder / "store.zarr"


def read_store(path: Path, chance: random.Random) -> int | None:
    how = chance.randrange(5)
    if how < 3:
        return main([["info", str(path), "--check"], ["info", str(path)], ["info", str(path), "--json"]][how])
    if how == 3:
        return (
            main(["repair", str(path)])
            if path.is_dir()
            else main(["convert", str(path), str(path.parent / "out.zarr")])
        )
    from dopr_robot.training import config_from, load_data

    values = {"data": {"store": str(path)}, "policy": {"name": "flow_unet"}, "optimizer": {"name": "adamw"}}
    data = load_data(config_from(values))
    data.train.batch(np.arange(min(4, len(data.train))))
    return None


def converted(write_as: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        convert(make_store(folder), folder / name, write_as=write_as)
        return folder / name

    return make


def read_format(name: str) -> Callable[[Path, random.Random], int | None]:
    def read(path: Path, chance: random.Random) -> int | None:
        named = ["--from", name] if chance.random() < 0.8 or name == "dapg" else []
        return main(["convert", str(path), str(path.parent / "out.zarr"), *named])

    return read


def make_d4rl(folder: Path) -> Path:
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        file["observations"], file["actions"] = np.ones((12, 5), "f4"), np.zeros((12, 2))
        file["rewards"], file["infos/qpos"] = np.zeros(12), np.zeros((12, 4))
        file["terminals"], file["timeouts"] = np.eye(12, dtype=bool)[4], np.eye(12, dtype=bool)[9]
        file["metadata/algorithm"] = "SAC"
    return folder / "d4rl.hdf5"


def make_minari(folder: Path) -> Path:
    data = folder / "minari" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number in range(2):
            group = file.create_group(f"episode_{number}")
            group["observations/arm"], group["actions"] = np.ones((6, 3)), np.ones((5, 2))
            group["rewards"], group["terminations"], group["truncations"] = (
                np.ones(5),
                np.zeros(5, bool),
                np.zeros(5, bool),
            )
            group["infos/success"] = np.zeros(6, bool)
            group.attrs["seed"], group.attrs["total_steps"], group.attrs["id"] = 3, 5, number
        file.attrs["total_episodes"] = 2
    about = {"dataset_id": "test/x-v0", "env_spec": json.dumps({"id": "Reach-v0", "kwargs": {}}), "total_steps": 10}
    (data / "metadata.json").write_text(json.dumps(about))
    return folder / "minari"


def make_dapg(folder: Path) -> Path:
    path = {"observations": np.ones((4, 5)), "actions": np.ones((4, 3), np.float32), "rewards": np.zeros(4)}
    path["env_infos"], path["init_state_dict"] = {"goal_achieved": np.ones(4, bool)}, {"qpos": np.zeros(7)}
    (folder / "dapg.pickle").write_bytes(pickle.dumps([path, path]))
    return folder / "dapg.pickle"


def make_robosuite(folder: Path) -> Path:
    with h5py.File(folder / "robosuite.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["repository_version"] = "Lift", "1.4.0"
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": ["Panda"]})
        demo = data.create_group("demo_1")
        demo["states"], demo["actions"] = np.zeros((5, 32)), np.zeros((5, 7))
        demo.attrs["model_file"] = "<mujoco/>"
    return folder / "robosuite.hdf5"


def make_run(folder: Path) -> Path:
    from dopr_robot.evaluation.rollouts.records import EpisodeRecord
    from dopr_robot.evaluation.statistics import summary
    from dopr_robot.seeds import block

    words = [
        "training.steps=2",
        "training.batch_size=8",
        "training.checkpoint_every=1",
        "training.warmup_steps=1",
        "name=run",
    ]
    words += ["policy=flow_transformer", "policy.network.dim=16", "policy.network.layers=1", "policy.network.heads=2"]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        store = make_store(folder)
        assert main(["train", "data.store=store.zarr", "data.observations=[state]", "training.device=cpu", *words]) == 0
    shutil.rmtree(store)
    records = [
        EpisodeRecord(
            number,
            seed,
            "00",
            "success" if number else "timeout",
            number * 3 or None,
            None,
            10,
            1.0,
            None,
            None,
            {"x": 1.0},
        )
        for number, seed in enumerate(block("final", 0, 4))
    ]
    out = folder / "runs" / "run" / "eval" / "final"
    out.mkdir(parents=True)
    (out / "episodes.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    results = {
        "task": "PickPlace", "kind": "attain", "checkpoint": None, "seed": 0, "use": "final", "horizons": [5, 10], "env_options": {},
        "acting": None, "episodes": 4, "episodes_asked": 4, "num_envs": 1, "partial": False, **summary(records, "attain", [5, 10]),
        "validation_loss": None, "lengths": [], "faults": [], "wall_s": 1.0, "env_steps_per_s": 1.0, "versions": {},
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(results))
    return folder / "runs" / "run"


def read_run(path: Path, chance: random.Random, hows: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> int | None:
    import torch

    from dopr_robot.evaluation.comparison import compare_evaluated, load_evaluated
    from dopr_robot.evaluation.reports.naming import method_labels
    from dopr_robot.policies import load_policy
    from dopr_robot.training import Checkpoints, load_config, read_metrics
    from dopr_robot.training.course import Course
    from dopr_robot.training.metrics import MetricsLog
    from dopr_robot.training.state import load_state

    how = chance.choice(hows)
    if how == 0:
        return main(["info", str(path), *(["--json"] if chance.random() < 0.3 else [])])
    if how == 1:
        policy = load_policy(path)
        policy.act({key: torch.zeros(1, policy.n_obs_steps, *shape) for key, shape in policy.observations.items()})
    elif how == 2:
        checkpoints = Checkpoints(path / "checkpoints")
        checkpoints.load_last()
        state = load_state(path / "checkpoints" / "2" / "training_state" / "state")
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):  # what a resume takes for other settings
            Course.from_state(state["course"])
    elif how == 3:
        load_config(path / "config.yaml")
        return main(["train", str(path / "config.yaml"), "--print"])
    elif how == 4:
        read_metrics(path)
        with MetricsLog(path, 1):
            pass
    else:
        method_labels([path, path])
        runs = [load_evaluated(path / "eval" / "final", label, 0) for label in "ab"]
        compare_evaluated(runs, None)
    return None


def make_study(folder: Path) -> Path:
    from dopr_robot.study import load_study

    (folder / "study").mkdir()
    (folder / "study" / "study.yaml").write_text(
        "tasks: [{task: QuadrotorTrack, store: q.zarr, horizons: [10, 30]}]\npolicies:\n- name: regression_mlp\n  network: {dim: 16}\n"
        "optimizers: [adamw]\nlearning_rates:\n  adamw: [1e-3]\nseeds: [0]\ntraining:\n  steps: 8\n"
        "evaluation: {selection_episodes: 2, test_episodes: 4}\n"
    )
    (arm,) = load_study(folder / "study" / "study.yaml").arms()
    checksums = dict.fromkeys(
        ("initial_weights_sha256", "first_batches_sha256", "weights_sha256", "selection_states_sha256"), "00"
    )
    record = {
        **arm.key, "config": arm.decides(), **checksums, "first_loss": 0.5, "parameters": 9, "selection_episodes": 2,
        "selection_successes": {"10": 1, "30": 0}, "selection_return": 1.0, "validation_loss": 0.1, "validation_loss_without_ema": 0.1,
        "curve": [{"step": 4, "validation_loss": 0.2, "success_rate": 0.5}], "skipped_steps": 0, "state_bytes": 10, "error": None,
        "cost": {"seconds_per_step": 0.1, "seconds": [1.0], "peak_cuda_bytes": None},
    }  # fmt: skip
    (folder / "study" / "arms.jsonl").write_text(
        json.dumps(record) + "\n" + json.dumps({**record, "error": "it diverged"}) + "\n"
    )
    return folder / "study"


def read_study(path: Path, chance: random.Random) -> int | None:
    from dopr_robot.study import load_study
    from dopr_robot.study.choice import check_matched, choose
    from dopr_robot.study.run import finished

    study = load_study(path / "study.yaml")
    with contextlib.suppress(KeyError):  # an arm that is not there is run again
        done = finished(study.arms(), path)
        check_matched(done.values())
        choose(study, done, {})
    return None


TARGETS = {
    "store": Target(make_store, read_store),
    "store-zip": Target(converted("diffusion_policy", "dp.zarr.zip"), read_store),
    "store-v2": Target(converted("diffusion_policy", "dp.zarr"), read_store),
    "run": Target(make_run, read_run),
    "policy": Target(make_run, lambda path, chance: read_run(path, chance, (0, 1, 1)), "policy.*"),
    "evaluation": Target(make_run, lambda path, chance: read_run(path, chance, (0, 5)), "e*/*/*.json*"),
    "study": Target(make_study, read_study, "*.[yj]*"),
    "robomimic": Target(converted("robomimic", "robomimic.hdf5"), read_format("robomimic"), ways=3),
    "lerobot": Target(converted("lerobot", "lerobot"), read_format("lerobot"), ways=3),
    "d4rl": Target(make_d4rl, read_format("d4rl"), ways=3),
    "minari": Target(make_minari, read_format("minari"), ways=3),
    "dapg": Target(make_dapg, read_format("dapg"), ways=3),
    "robosuite": Target(make_robosuite, read_format("robosuite"), ways=3),
}


# Running them.


def limit() -> None:
    """1 GiB beyond what this process has, and a CPU time after which it is killed."""
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(data.split()[1]) * 1024 + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fault(target: Target, example: Path, seed: str, whole: bool = False) -> str | None:
    """What is wrong with how a case ends, or None; ``whole``: nothing is spoiled."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / example.name
        shutil.copytree(example, path, symlinks=True) if example.is_dir() else shutil.copy(example, path)
        done = "whole" if whole else spoil(path, target.only, chance)
        said = io.StringIO()
        try:
            with contextlib.chdir(folder), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = target.read(path, chance)
        except DoprError as error:
            return None if str(error) else f"{done}: {type(error).__name__} without a message"
        except BaseException:
            return f"{done}: {traceback.format_exc(limit=-4)}"
        if code not in (None, 0, 1, 2) or f"dopr: {UNEXPECTED}" in said.getvalue():
            return f"{done}: exit code {code}: {said.getvalue()[-4000:]}"
    return None


def warm(target: Target, example: Path) -> str | None:
    """Read the example as it is, in every way, so that what is imported for it is there before the processes part."""
    chance = random.Random(0)
    for _ in range(target.ways):
        if found := fault(target, example, str(chance.random()), whole=True):
            return found
    return None


def run_cases(target: Target, example: Path, seeds: list[str]) -> Iterator[tuple[str, str]]:
    """The cases that end badly. A process does many of them, one after another; where it dies, another goes on after that case."""
    while seeds:
        batch, (reading, writing) = seeds[:BATCH], os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.environ["DOPR_TRACEBACK"] = "1"
                limit()
                for seed in batch:
                    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                    os.write(writing, json.dumps([seed, fault(target, example, seed)]).encode()[:60_000] + b"\n")
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            found = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        yield from ((seed, what) for seed, what in found if what)
        if status:
            yield batch[len(found)], f"the process ended by {os.waitstatus_to_exitcode(status)}"
        seeds = seeds[len(found) + bool(status) :]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_a_spoiled_file_ends_in_a_line(name, tmp_path, request):
    cases, seed = request.config.getoption("--fuzz-cases"), request.config.getoption("--fuzz-seed")
    target = TARGETS[name]
    example = target.make(tmp_path)
    assert warm(target, example) is None
    share = max(1, cases // len(TARGETS))
    bad = list(run_cases(target, example, [f"{seed}-{name}-{number}" for number in range(share)]))
    assert not bad, f"{len(bad)} of {share} cases end badly, --fuzz-seed {seed}:\n" + "\n".join(
        f"{s}: {w}" for s, w in bad[:8]
    )
