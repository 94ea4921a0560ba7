"""Short models over Triton's HTTP/1.1 door."""
