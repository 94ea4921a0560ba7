"""What operators call: health, metrics, the policy in force, replicas and models."""
