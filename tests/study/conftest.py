import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dopr_robot import collect


@pytest.fixture(autouse=True)
def drawn_where_it_is_marked(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("drawn") is None:
        request.getfixturevalue("undrawn")


@pytest.fixture(scope="module")
def make_study(tmp_path_factory) -> Callable[[str], Path]:
    """``make_study(yaml)``: the file of a study of two optimizers on QuadrotorTrack, and what ``yaml`` adds."""

    def make(added: str) -> Path:
        folder = tmp_path_factory.mktemp("study")
        collect("QuadrotorTrack", 3, folder / "q.zarr")
        (folder / "study.yaml").write_text(f"""
tasks: [{{task: QuadrotorTrack, store: {folder / "q.zarr"}, horizons: [10, 30]}}]
policies: [{{name: regression_mlp, network: {{dim: 16, blocks: 1}}}}]
optimizers: [adamw, dopr_adamw]
learning_rates: [1e-3, 3e-3]
{added}
""")
        return folder / "study.yaml"

    return make


@pytest.fixture(scope="session")
def records() -> Callable[[Path], list[dict]]:
    """``records(study)``: lines of its ``arms.jsonl`` in the order of the arms, without what a clock says."""

    def read(out: Path) -> list[dict]:
        lines = [json.loads(line) for line in (out / "arms.jsonl").read_text().splitlines()]
        return sorted(
            ({key: value for key, value in line.items() if key != "cost"} for line in lines),
            key=lambda line: (line["optimizer"], line["learning_rate"], line["seed"]),
        )

    return read
