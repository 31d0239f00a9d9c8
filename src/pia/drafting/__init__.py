"""Where drafts come from. Knows tokens, not models; never imports torch."""
