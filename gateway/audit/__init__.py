"""The audit log: what was decided of whom, in a chain that shows what was changed."""
