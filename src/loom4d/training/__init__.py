"""Image grids to weights: shards on disk, objectives, a loop that resumes, and the recipes of every shipped file."""
