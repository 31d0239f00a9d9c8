"""The loop: draft, verify, accept, keep, learn. Knows logits, not model families."""
