"""Clients that others wrote, against the running stack: each in an environment of its own."""
