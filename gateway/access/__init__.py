"""Who is calling, what they may do and how much of it, joined: for a request and for a stream."""
