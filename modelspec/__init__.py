"""The vocabulary that every writer of the model repository shares.

``tensor`` and ``model`` say what a model is, ``endpoint_schema`` how the gateway shows it,
``pbtxt`` how it is written for Triton, ``layout`` where it lies on disk.
"""
