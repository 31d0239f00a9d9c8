"""Attention over a tree behind a long text, without a mask of the text's size."""
