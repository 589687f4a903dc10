from pathlib import Path

import pytest

PUSHT = Path(__file__).resolve().parents[3] / "shared" / "data" / "pusht_cchi_v7_replay.zarr.zip"


@pytest.fixture(scope="session")
def pusht_path():
    """Diffusion Policy's PushT demonstrations, where they lie beside the repository."""
    if not PUSHT.exists():
        pytest.skip(f"{PUSHT.name} is not in ../shared/data")
    return PUSHT
