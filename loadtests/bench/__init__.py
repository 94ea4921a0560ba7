"""``make bench``: what each layer costs, side by side, as ratios of alternating passes."""
