"""Legacy remote-code checkpoints become stock ones: weights renamed and repacked, tokenizers rebuilt, formulas kept."""
