"""V2 ``generate`` and ``generate_stream``, and a model's ``config`` and ``stats``."""
