"""Training a potential: the trainer, its options, its batches and its callbacks."""
