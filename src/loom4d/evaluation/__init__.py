"""How good pictures, grids and assets are, against truth and against what needs no method at all."""
