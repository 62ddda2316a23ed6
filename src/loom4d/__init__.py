"""Loom4D: pictures, clips and static models into moving 3D assets."""
