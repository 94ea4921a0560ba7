"""Models whose own tensors are served as they are: torch modules and ONNX graphs."""
