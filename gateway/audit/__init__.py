"""The audit log: every access decision, in a hash chain that reveals later changes."""
