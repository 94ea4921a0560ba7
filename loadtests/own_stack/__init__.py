"""A stack of our own for as long as a measurement takes: how it starts, and what CPU it uses."""
