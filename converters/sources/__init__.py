"""Source adapters: each loads one kind of trained model, safely and without the network."""
