"""Token trees in, log-probabilities out."""
