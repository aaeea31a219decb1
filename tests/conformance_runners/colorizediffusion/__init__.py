"""How the cases of ColorizeDiffusion are run."""
