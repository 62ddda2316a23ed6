"""Networks that estimate clean clips from noisy ones, one family a file, and where their weights come from."""

from loom4d.denoisers.built_in import small
from loom4d.denoisers.family import Family, Guidance, Loader

DENOISERS: dict[str, Loader] = {"small": small}

__all__ = ["DENOISERS", "Family", "Guidance"]
