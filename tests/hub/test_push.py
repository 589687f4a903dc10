"""A policy that is pushed comes back: the same weights, the same episodes, and a card that says what was measured."""

import json
import re
import shlex

import pytest
import yaml

from dopr_robot import UserError, collect, evaluate, load_policy, push, train
from dopr_robot.cli import main
from dopr_robot.cli.eval import integers
from dopr_robot.envs import get_task

SMALL = {"policy.network.dim": 16, "policy.network.layers": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on CartPoleSwingUp, evaluated twice."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        collect("CartPoleSwingUp", 2, place / "cart.zarr")
        run = train(
            "pick_place",
            task="CartPoleSwingUp",
            steps=2,
            batch_size=16,
            store=str(place / "cart.zarr"),
            name="cart",
            **SMALL,
        )
        evaluate(run, episodes=2, horizons=[20], video=0)
        evaluate(run, episodes=3, horizons=[20, 40], video=0, perturb={"observation_noise": [0.01]})
    run.folder = place / run.folder
    return run


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    return hub


def test_what_is_pushed_comes_back(logged_in, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(trained), "ada/cart", "--licence", "mit", "--private"]) == 0
    assert capsys.readouterr().out == "hf://ada/cart\n"
    there = logged_in.repositories["models", "ada/cart"]
    assert there.private
    names = {"README.md", "config.yaml", "policy.json", "policy.safetensors"}
    assert set(there.files) == names | {f"eval/{name}" for name in ("results.json", "episodes.jsonl", "horizon.png")}
    assert len(there.commits) == 1
    assert str(trained.folder.parent).encode() not in b"".join(there.files.values())  # nobody's disk is told of

    head, card = re.fullmatch(r"---\n(.*?)---\n(.*)", there.files["README.md"].decode(), re.DOTALL).groups()
    results = json.loads(there.files["eval/results.json"])
    last = results["curve"][-1]
    assert results["episodes"] == 3  # of the two evaluations the larger
    assert yaml.safe_load(head)["license"] == "mit"
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["metrics"][0]["value"] == last["success_rate"]
    low, high = last["ci95"]
    assert (
        f"| 40 | {40 / get_task('CartPoleSwingUp').control_hz:.1f} | {last['success_rate']:.1%} | {low:.1%} to {high:.1%} |"
        in card
    )
    assert "observation_noise=0.01" in card

    call = shlex.split(next(line for line in card.splitlines() if line.startswith("dopr eval")))
    assert call[2] == "hf://ada/cart"
    assert main([*call[1:], "--video", "0", "--quiet"]) == 0
    again = capsys.readouterr().out.strip()
    assert again == "eval/cart-seed0"
    assert (tmp_path / again / "episodes.jsonl").read_bytes() == there.files["eval/episodes.jsonl"]
    assert integers(call[call.index("--horizons") + 1]) == [20, 40]

    for name, value in load_policy("hf://ada/cart").state_dict().items():
        assert value.equal(trained.policy().state_dict()[name])


def test_pushed_again_it_has_one_evaluation_or_none(logged_in, trained, tmp_path, caplog):
    push(trained, "ada/cart")
    there = logged_in.repositories["models", "ada/cart"]
    assert not there.private
    first, *_ = trained.evaluations
    push(trained, "ada/cart", evaluation=first)
    assert json.loads(there.files["eval/results.json"])["episodes"] == 2
    unevaluated = tmp_path / "2"
    unevaluated.mkdir()
    for name in ("policy.json", "policy.safetensors"):
        (unevaluated / name).write_bytes((trained.folder / "checkpoints" / "2" / name).read_bytes())
    push(unevaluated, "ada/cart")
    assert "not been evaluated" in there.files["README.md"].decode()
    assert not [name for name in there.files if name.startswith("eval/")]


def test_who_may_not_push_is_told(hub, trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="HF_TOKEN"):
        push(trained, "ada/cart")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(UserError, match=r"refuses \(401\)"):
        push(trained, "ada/cart")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(UserError, match="user/name"):
        push(trained, "ada/cart/policy")
    with pytest.raises(UserError, match="does not exist"):
        push(tmp_path / "none", "ada/cart")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="can not be reached"):
        push(trained, "ada/cart")
    assert not hub.repositories


def test_an_evaluation_of_another_checkpoint_is_refused(logged_in, trained, tmp_path):
    content = json.loads((trained.evaluations[0] / "results.json").read_text(encoding="utf-8"))
    content["checkpoint"]["sha256"] = "0" * 64
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="no whole evaluation"):
        push(trained, "ada/cart", evaluation=tmp_path)
    assert not logged_in.repositories
