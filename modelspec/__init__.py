"""The vocabulary that every writer of the model repository shares.

``model`` says what a model is, ``endpoint_schema`` how the gateway exposes it, ``pbtxt`` how its
config is written for Triton, ``layout`` where it is on disk.
"""
