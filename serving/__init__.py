"""Start, watch and heal a Triton server, and publish models into its repository."""
