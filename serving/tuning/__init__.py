"""Search a pipeline's serving parameters on this machine: ``space`` says what can be set,
``trial_server`` is
the scratch Triton, ``trial`` one setting measured, ``search`` what to try next, ``outcome`` what is
written."""
