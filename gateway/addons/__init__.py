"""What a gateway can do besides, each in a module of its own that is imported once it is wanted."""
