"""Dynamic Gaussians in a browser."""

from loom4d.viewer.page import PageSize, write_page

__all__ = ["PageSize", "write_page"]
