"""Dynamic Gaussians to files that other programs read."""

from loom4d.export.formats import FORMATS, Format, export

__all__ = ["FORMATS", "Format", "export"]
