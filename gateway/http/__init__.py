"""HTTP in and out: what every request passes through, whichever API it is for."""
