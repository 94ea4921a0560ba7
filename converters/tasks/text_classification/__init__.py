"""A text -> a score for each label."""
