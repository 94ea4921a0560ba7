"""What clients call: V2, gRPC, OpenAI, tasks, health and admin; and the OpenAPI document."""
