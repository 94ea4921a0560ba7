"""The gRPC API: stock clients of Triton's own gRPC, under the policy of the other APIs."""
