"""What a denoising step of ColorizeDiffusion computes, before and after each computation that is taken out of it."""
