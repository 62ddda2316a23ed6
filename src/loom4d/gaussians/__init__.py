"""Image grids to dynamic Gaussians, and dynamic Gaussians to pictures."""
