"""Copied into the model repository as a step's ``model.py``; these import nothing of ours."""
