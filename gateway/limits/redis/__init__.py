"""Limits that several workers and gateways share, stored in Redis."""
