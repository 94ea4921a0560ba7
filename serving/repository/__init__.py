"""A model repository on disk: its configs, versions, pins, manifests and lock."""
