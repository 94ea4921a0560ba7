"""TensorRT engines ("plans"): what they are bound to, how they are built, where they run.

Only ``build``, ``monitor`` and ``converters.trt_runner`` import tensorrt; ``available`` is asked
before.
"""
