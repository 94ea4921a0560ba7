"""Limits that several workers and gateways share, kept in Redis."""
