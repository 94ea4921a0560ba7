"""The way in and out: what every request meets, whichever API it is for."""
