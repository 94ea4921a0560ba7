"""Answers that come in pieces, as server-sent events: what generate and chat share."""
