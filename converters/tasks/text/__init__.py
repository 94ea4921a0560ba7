"""Models that begin with a text: vectors, labels, entities."""
