"""A policy to the hub: its weights, what describes them, and a card with what was measured of it."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.evaluation.evaluator import FIGURE
from dopr_robot.evaluation.reports.card import model_card
from dopr_robot.evaluation.results import Results
from dopr_robot.evaluation.rollouts.plan import describe_checkpoint
from dopr_robot.evaluation.rollouts.records import RECORDS, RESULTS
from dopr_robot.hub import Address, Client
from dopr_robot.policies import find_checkpoint
from dopr_robot.policies.checkpoint import DESCRIPTION, WEIGHTS, read_description
from dopr_robot.training import Run, find_damage
from dopr_robot.training.folder import CONFIG

LOG = logging.getLogger(__name__)
CARD, EVALUATION = "README.md", "eval"


def push(
    run: str | os.PathLike[str],
    name: str,
    *,
    evaluation: str | os.PathLike[str] | None = None,
    private: bool = False,
    licence: str | None = None,
) -> str:
    """A trained policy to the Hugging Face hub, with a card of what was measured of it, as ``dopr push`` does.

    >>> push("runs/pick_place", "ada/pick_place")                              # doctest: +SKIP
    'hf://ada/pick_place'

    One commit, whole or not at all: weights, ``policy.json``, ``config.yaml``, the evaluation's results, records and curve, and the card.

    Args:
        run: a run (its newest checkpoint), or a checkpoint.
        name: of the repository, ``user/name``; it is made where there is none.
        evaluation: folder of the evaluation that the card is about, of this very checkpoint; None: the run's with most episodes.
        private: whether a repository that is made is seen by its owner alone.
        licence: of the weights, an SPDX identifier.

    Returns:
        The address, which :func:`dopr_robot.load_policy` and :func:`dopr_robot.evaluate` take.

    Raises:
        UserError: no checkpoint there, or a damaged one; an evaluation of another one; no token, or no right; no hub to be reached.
        DoprError: the hub failed.
    """
    address = Address.parse(name, "model")
    if address.path or address.revision or address.kind != "model":
        raise UserError(f"{name!r} has to be the name of a repository of models: user/name")
    client = Client(address)
    checkpoint = find_checkpoint(run).resolve()
    if (checkpoint / "checksums.json").exists() and (damage := find_damage(checkpoint)):
        raise UserError(f"{checkpoint} is damaged: {damage}")
    if client.package.get_token() is None:
        raise UserError("pushing takes a token that may write: `hf auth login`, or HF_TOKEN")
    files = _files(checkpoint, f"hf://{address.repository}", evaluation, licence)
    added = [client.package.CommitOperationAdd(path, content) for path, content in files.items()]
    with client.told():
        _make(client, private)
        before = client.api.list_repo_files(**client.place)
        gone = [each for each in before if each.startswith(f"{EVALUATION}/") and each not in files]
        removed = [client.package.CommitOperationDelete(each) for each in gone]
        message = f"dopr push: step {_step(checkpoint)}"
        client.api.create_commit(operations=[*added, *removed], commit_message=message, **client.place)
    return f"hf://{address.repository}"


def _make(client: Client, private: bool) -> None:
    try:
        client.info()
    except client.errors.RepositoryNotFoundError:
        client.api.create_repo(private=private or None, exist_ok=True, **client.place)


def _files(
    checkpoint: Path, address: str, evaluation: str | os.PathLike[str] | None, licence: str | None
) -> dict[str, Any]:
    """What goes there: by name, a file's path or its content."""
    home, description = Run.of(checkpoint), read_description(checkpoint)
    files: dict[str, Any] = {WEIGHTS: str(checkpoint / WEIGHTS), DESCRIPTION: str(checkpoint / DESCRIPTION)}
    if home is not None:
        config = home.config
        if config.data.store and Path(config.data.store).is_absolute():  # where it lies is nobody's business
            config = replace(config, data=replace(config.data, store=Path(config.data.store).name))
        files[CONFIG] = config.to_yaml().encode()
    results = _evaluation(checkpoint, home, evaluation)
    content = None
    if results is None:
        LOG.warning("%s has not been evaluated, and its card says so: dopr eval %s first", checkpoint, checkpoint)
    else:
        content = {**results.content, "checkpoint": {**results.content["checkpoint"], "path": address}}
        files[f"{EVALUATION}/{RESULTS}"] = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
        for each in (RECORDS, FIGURE):
            if (results.folder / each).is_file():
                files[f"{EVALUATION}/{each}"] = str(results.folder / each)
    files[CARD] = model_card(address, description, content, home, licence).encode()
    return files


def _evaluation(checkpoint: Path, home: Run | None, asked: str | os.PathLike[str] | None) -> Results | None:
    """The evaluation that is asked for, or the largest whole one of this checkpoint."""
    described = describe_checkpoint(checkpoint)
    assert described is not None

    def is_its(content: Mapping[str, Any]) -> bool:
        return bool(content["checkpoint"]) and content["checkpoint"]["sha256"] == described["sha256"]

    if asked is not None:
        results = Results(asked)
        if not is_its(results.content) or results.content["use"] != "final" or results.content["partial"]:
            raise UserError(f"{asked} is no whole evaluation of {checkpoint}: dopr eval {checkpoint} makes one")
        return results
    found = [Results(each) for each in (home.evaluations if home else [])]
    fit = [
        each
        for each in found
        if is_its(each.content) and each.content["use"] == "final" and not each.content["partial"]
    ]
    return max(fit, key=lambda each: each.content["episodes"], default=None)


def _step(checkpoint: Path) -> str:
    return checkpoint.name if checkpoint.name.isdigit() else "unknown"
