"""Models that begin with a picture."""
