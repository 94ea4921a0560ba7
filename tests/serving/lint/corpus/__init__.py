"""Small models, each with one peculiarity, that both Triton and the linter are asked about."""
