"""What the verbs do: the other packages composed, imported late where they are heavy."""
