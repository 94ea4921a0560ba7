"""TensorRT engines ("plans"): what they are bound to, how they are built, where they run.

Only ``build``, ``monitor`` and ``runner`` import tensorrt, after ``available`` has checked for it.
"""
