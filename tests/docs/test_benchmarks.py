"""docs/benchmarks.md is what the records in benchmarks/field say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from dopr_robot import seeds
from dopr_robot.evaluation.rollouts.records import EpisodeRecord

ROOT = Path(__file__).parents[2]
FIELD = ROOT / "benchmarks" / "field"


@pytest.fixture
def benchmarks():
    spec = importlib.util.spec_from_file_location("benchmarks_page", ROOT / ".ci" / "benchmarks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_records(benchmarks):
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert benchmarks.page() == page, "write it anew: python -P .ci/benchmarks.py"


@pytest.mark.parametrize("file", sorted(FIELD.glob("*.yaml")), ids=lambda file: file.stem)
def test_commands_name_experiments_of_the_task(file):
    about = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name in re.findall(r"dopr train (\w+)", about["commands"]):
        experiment = yaml.safe_load((ROOT / "configs" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert experiment["task"] == about["task"]
    if "study" in about:
        study = yaml.safe_load((ROOT / "studies" / f"{about['study']}.yaml").read_text(encoding="utf-8"))
        assert (
            study["evaluation"]["test_episodes"] == about["episodes"]
            and f"studies/{about['study']}.yaml" in about["commands"]
        )
        return
    assert f"--episodes {about['episodes']}" in about["commands"] or about["episodes"] == 50  # that of the experiments


def written(folder, which, coverages, first=0):
    """Records of an evaluation of PushT with these coverages."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{which}.jsonl").open("w", encoding="utf-8") as file:
        for episode, coverage in enumerate(coverages):
            seed = seeds.block("final", 0, 100)[first + episode]
            success = 100 if coverage > 0.95 else None
            outcome = "success" if success else "timeout"
            made = EpisodeRecord(episode, seed, None, outcome, success, None, 300, 0.0, metrics={"coverage": coverage})
            file.write(made.to_json() + "\n")


def test_figures_are_means_with_intervals_over_states_and_seeds(benchmarks, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "FIELD", tmp_path)
    coverage = {"task": "gym_pusht/PushT-v0", "figure": "coverage", "episodes": 4}
    assert benchmarks.figure("pusht", coverage, "last") == "–"
    written(tmp_path / "pusht", "last-0", [0.5, 0.7, 0.9, 1.0])
    assert benchmarks.figure("pusht", coverage, "last").startswith("**0.775** (0.422 to 1.000), 1 seed")
    assert benchmarks.figure("pusht", coverage | {"figure": "success"}, "last") == "**25.0** (4.6 to 69.9) %, 1 seed"
    written(tmp_path / "pusht", "last-1", [0.3, 0.5, 0.7, 0.8])
    assert benchmarks.figure("pusht", coverage, "last").startswith("**0.675** (0.0") and "2 seeds" in benchmarks.figure(
        "pusht", coverage, "last"
    )
    written(tmp_path / "pusht", "best-0", [0.5, 0.7, 0.9, 1.0], first=1)
    with pytest.raises(ValueError, match="best is not of the 4 episodes of seed 0"):
        benchmarks.figure("pusht", coverage, "best")


def test_groups_are_of_a_studys_tests(benchmarks, tmp_path, monkeypatch):
    """A group's tasks count alike, by optimizer; an arm that was not tested, or is not the chosen one any more, does not count."""
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    study = tmp_path / "studies" / "some"
    tested = [("reach", "adamw", [0, 1]), ("coffee-pull", "adamw", [1, 1]), ("reach-wall", "adamw", [1, 1])]
    tested += [("reach", "muon", [1, 1]), ("coffee-pull", "muon", [0, 0]), ("reach-wall", "muon", [1, 1])]
    tested += [("reach", "muon", [0, 0])] * 2  # by a rate, and a damping, that was the best before another was tried
    arms = []
    for number, (task, optimizer, successes) in enumerate(tested):
        name = f"metaworld/{task}-v3"
        arm = {"task": f"{name} as it is", "config": {"task.name": name}, "optimizer": optimizer, "seed": 0}
        arm |= {
            "learning_rate": 0.001 if number == 6 else 0.003,
            "hyperparameters": {"damping": 1.0 if number == 7 else 0.1},
        }
        arms.append(arm | {"weights_sha256": str(number)})
        written(study / "test" / str(number), "episodes", successes)
        (study / "test" / str(number) / "test.json").write_text(json.dumps({"weights_sha256": str(number)}))
    arms.append(arms[0] | {"weights_sha256": "of tuning"})
    (study / "arms.jsonl").write_text("".join(json.dumps(arm) + "\n" for arm in arms))
    chosen = "".join(f"{arm['task']},{arm['optimizer']},0.003,damping=0.1\n" for arm in arms)
    (study / "table.csv").write_text("task,optimizer,learning_rate,hyperparameters\n" + chosen)
    about = {"study": "some", "figure": "success", "optimizers": ["muon", "adamw"]}
    about["lines"] = {"metaworld/easy": "easy", "metaworld/coffee-pull-v3 as it is": "medium"}
    easy, medium = benchmarks.of_study(about).split("<br>")
    assert medium.startswith("medium: muon **0.0** (") and "; adamw **100.0** (" in medium
    assert easy.startswith("easy (2 tasks): muon **100.0** (") and "; adamw **75.0** (30.1 to 95.4) %, 1 seed" in easy
