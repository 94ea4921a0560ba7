"""Names and versions that the graphs of tabular models share."""

OPSET = 18
ALL = "all_columns"  # the one input of a model without named columns
# A node that never runs: ``converters.export.tabular_graph`` replaces it with the step's terms.
VECTORIZE, TIDEGATE_DOMAIN = "Vectorize", "tidegate"
