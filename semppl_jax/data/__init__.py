"""Data sets, labelled subsets, and the input of the training loop."""
