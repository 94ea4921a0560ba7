"""Trained model -> ONNX -> proof that the conversion kept the model's answers.

Importing the package takes the process offline: the frameworks read these settings when they are
loaded, and any module of the package may load one.
"""

from converters.offline import go_offline

go_offline()
