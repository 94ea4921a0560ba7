"""Publish versions beside the active one, move the pin, and recover from what a kill left."""
