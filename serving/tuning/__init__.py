"""Search a pipeline's serving parameters on this machine: ``space`` says what can be set,
``trial_server`` is the scratch Triton, ``trial`` measures one setting, ``search`` decides what to
try next, ``outcome`` writes the result."""
