"""A text -> the entities in it."""
