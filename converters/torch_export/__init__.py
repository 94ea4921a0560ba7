"""A torch module as an exported program, compiled by AOTInductor, in a ``.pt2`` file: how it is
made, what it is bound to, and where it runs for its proof. ``serving/backends/torch_export`` serves
it.
"""
