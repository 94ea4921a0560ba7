"""The catalogue of models that Triton serves, and the firewall for their tensors."""
