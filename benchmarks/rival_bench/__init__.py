"""AnimeDiffusion as published, and every way to run it faster that this machine has."""
