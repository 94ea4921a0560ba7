"""Modules that are copied into the model repository as a step's ``model.py``: they import nothing
of Tidegate's."""
