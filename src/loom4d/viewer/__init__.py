"""Dynamic Gaussians in a browser."""

from loom4d.viewer.page import PageSize, disagreement_of, write_page

__all__ = ["PageSize", "disagreement_of", "write_page"]
