"""The normalization layers that a network has itself."""

from __future__ import annotations

from typing import NoReturn

from metafew.errors import UsageError


class OwnNorms:
    """Keep the normalization layers of a network: what ``norm=own`` gives backbones in place of a scheme."""

    def __call__(self, channels: int) -> NoReturn:
        """Raise UsageError, as there is no layer to make."""
        raise UsageError(
            "expected a norm for the layers of this backbone, got own, the norms of a network of backbone=module: "
            "type norm=tasknorm"
        )
