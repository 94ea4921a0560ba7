"""Trained model -> ONNX -> proof that the conversion kept the model's answers."""
