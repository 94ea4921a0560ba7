"""A query and a passage -> how relevant the passage is."""
