"""Networks that estimate clean clips from noisy ones, one family a file, and where their weights come from."""

from loom4d.denoisers.built_in import small
from loom4d.denoisers.family import Family, Guidance, Loader
from loom4d.denoisers.full_size import svd_sv3d

DENOISERS: dict[str, Loader] = {"small": small, "svd-sv3d": svd_sv3d}

__all__ = ["DENOISERS", "Family", "Guidance"]
