"""The V2 API: the Open Inference Protocol over HTTP, for stock clients."""
