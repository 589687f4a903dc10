"""Public data and weights by name, from the Hugging Face hub. It takes the extra ``hub``.

The names below are found when they are asked for.
"""

from typing import TYPE_CHECKING

from dopr_robot.lazy import lazy

if TYPE_CHECKING:
    from dopr_robot.hub.address import Address, is_address
    from dopr_robot.hub.client import Client
    from dopr_robot.hub.fetching import Fetched, fetch, local
    from dopr_robot.hub.public import PUBLIC, Public

_LAZY = {
    "Address": "address",
    "Client": "client",
    "Fetched": "fetching",
    "PUBLIC": "public",
    "Public": "public",
    "fetch": "fetching",
    "is_address": "address",
    "local": "fetching",
}
__all__ = ["PUBLIC", "Address", "Client", "Fetched", "Public", "fetch", "is_address", "local"]


__getattr__ = lazy(__name__, _LAZY)
