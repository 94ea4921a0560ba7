"""The capacity sign-off: a load test that ends in a verdict, and says how sure it is."""
