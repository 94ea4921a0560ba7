"""What a model can be served as, measured on this machine: the first half of ``tidegate optimize``.

``candidates`` says what there is, ``building`` writes it, ``clock`` times it in a process of its
own, ``accuracy`` compares it with the original, ``measuring`` runs all of it within a budget and
keeps what was measured, ``pareto`` picks, ``table`` and ``chart`` show."""
