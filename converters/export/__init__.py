"""From what a source holds to an ONNX graph."""
