"""Names and versions that the graphs of tables share."""

OPSET = 18
ALL = "all_columns"  # the one input of a model that does not tell its columns apart
# A node that is never run: ``converters.tabular.graph`` puts the step's terms in its place.
VECTORIZE, TIDEGATE_DOMAIN = "Vectorize", "tidegate"
