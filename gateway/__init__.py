"""One thin, governed API in front of Triton servers. Knows HTTP and Triton's protocol only."""
