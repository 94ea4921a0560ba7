"""One thin, governed door in front of Triton servers. Knows HTTP and Triton's protocol only."""
