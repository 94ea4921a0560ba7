"""What is served, read from Triton, and the tensors that its models take: the firewall."""
