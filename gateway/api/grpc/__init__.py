"""The gRPC API: stock clients of Triton's gRPC service, under the same policy as the other APIs."""
