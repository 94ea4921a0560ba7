"""Trained model -> ONNX -> proof that the conversion kept the model's answers.

Importing the package takes the process offline: the settings are read when the frameworks are
loaded, and whichever module is imported first loads one.
"""

from converters.offline import go_offline

go_offline()
