"""botocore's own data, without what is of no use to us."""

from typing import Any

from botocore.loaders import Loader


class SlimLoader(Loader):
    """Leaves out the addresses of Amazon's regions, 7 MB of them in every process: we always name an endpoint."""

    def load_data_with_path(self, name: str) -> tuple[Any, str]:
        """Return a file of the data, and where it lies."""
        if name == "endpoints":
            return {"partitions": []}, ""
        found: tuple[Any, str] = super().load_data_with_path(name)
        return found
