"""What a model can do: KV layouts, tree masks, positions, capabilities."""
