"""Train the models of the worked case, reproducibly, on data that installed packages carry.

Each recipe is a module with a function ``train``. It writes a Hugging Face folder that ``tidegate
convert`` takes like any other, with a README.md that says what was measured.
"""
