"""One endpoint for each pipeline that has an endpoint schema."""
