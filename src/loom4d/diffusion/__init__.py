"""(Denoiser, noise) -> sample: mathematics only. No weights, no files, no devices of its own."""
