"""The candidates that a model can be served as, measured on this machine: the first half of
``tidegate optimize``.

``candidates`` lists them, ``measuring`` writes, compares and times them within a budget and caches
every measurement, ``benchmark`` times one in a process of its own, ``accuracy`` compares it with
the original, ``pareto`` picks one, ``table`` and ``chart`` show the findings.
"""
