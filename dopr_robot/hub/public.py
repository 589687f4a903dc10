"""Data that papers use, by short names: where they lie on the hub, under which licence, and what to do with them next."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Public:
    """A public set of demonstrations.

    Attributes:
        address: where it lies.
        what: it is, in a few words.
        licence: an SPDX identifier, by the repository's card (2026-11) or, where that is silent, by its authors.
        extra: of this package, that reading it takes.
        options: of ``dopr convert``, behind source and store.
    """

    address: str
    what: str
    licence: str
    extra: str | None = None
    options: str = ""


def _robomimic() -> Mapping[str, Public]:
    """As ``robomimic/__init__.py`` of 0.5 registers them: version 1.5, which is of robosuite 1.5."""
    found = {}
    tasks = {"lift": "Lift", "can": "Can", "square": "Square", "transport": "Transport", "tool_hang": "ToolHang"}
    for task, name in tasks.items():
        for short, kind in {"ph": "200 proficient-human", "mh": "300 multi-human"}.items():
            if (task, short) == ("tool_hang", "mh"):
                continue
            place, plain = (
                f"hf://robomimic/robomimic_datasets/v1.5/{task}/{short}",
                f"robomimic/{task.replace('_', '-')}-{short}",
            )
            said = f"robosuite's {name}: {kind} demonstrations"
            found[plain] = Public(f"{place}/low_dim_v15.hdf5", said, "MIT")
            found[f"{plain}-states"] = Public(
                f"{place}/demo_v15.hdf5",
                f"{said}, as states to make pictures of",
                "MIT",
                "robosuite",
                "--cameras agentview,robot0_eye_in_hand --size 84",
            )
    return found


def _minari() -> Mapping[str, Public]:
    """Minari's sets where ``minari download D4RL/door/human-v2`` finds them; the licence is D4RL's for its data."""
    adroit = {"door": "Door", "hammer": "Hammer", "pen": "Pen", "relocate": "Relocate"}
    place = "hf://farama-minari/D4RL"
    return {
        f"minari/{name}-human": Public(
            f"{place}/{name}/human-v2", f"AdroitHand{task}: 25 human demonstrations", "CC-BY-4.0"
        )
        for name, task in adroit.items()
    } | {
        f"minari/kitchen-{name}": Public(
            f"{place}/kitchen/{name}-v2", f"FrankaKitchen by people, D4RL's {name}", "CC-BY-4.0"
        )
        for name in ("complete", "partial", "mixed")
    }


PUBLIC: Mapping[str, Public] = {
    "lerobot/pusht": Public(
        "hf://lerobot/pusht", "PushT: 206 human demonstrations, pusher and pictures", "MIT", "lerobot"
    ),
    "lerobot/aloha_sim_transfer_cube_human": Public(
        "hf://lerobot/aloha_sim_transfer_cube_human",
        "ALOHA's TransferCube in simulation: 50 human demonstrations, pictures of one camera",
        "MIT",
        "lerobot",
    ),
    **_robomimic(),
    **_minari(),
}
"""By name."""
