"""SemPPL's training step in PyTorch, to be timed beside ours."""
