"""Models that begin with an image."""
