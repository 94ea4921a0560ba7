"""The way in and out: what every request meets, whichever door it is for."""
