"""Search a pipeline's serving knobs on this machine: ``space`` says what can be set, ``stand`` is
the scratch Triton, ``trial`` one setting measured, ``search`` what to try next, ``outcome`` what is
written."""
