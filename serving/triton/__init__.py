"""One Triton server: find it, launch it, talk to it, and know its processes."""
