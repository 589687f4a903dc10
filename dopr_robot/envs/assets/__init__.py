"""MJCF of our tasks."""

from importlib.resources import files
from typing import Any


def load_model(name: str, **replacements: str) -> Any:
    """Compile ``<name>.xml``, which may include the other files here.

    Args:
        name: without the ending.
        **replacements: text put in the place of ``{key}``.

    Returns:
        an ``mujoco.MjModel``.
    """
    import mujoco

    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in files(__package__).iterdir()
        if file.name.endswith(".xml")
    }
    text = texts.pop(f"{name}.xml")
    for key, value in replacements.items():
        text = text.replace("{" + key + "}", value)
    return mujoco.MjModel.from_xml_string(text, {file: content.encode() for file, content in texts.items()})
