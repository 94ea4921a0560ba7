"""The task API: one endpoint for each pipeline that has an endpoint schema."""
