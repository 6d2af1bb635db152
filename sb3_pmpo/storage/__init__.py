"""Files of models, buffers, statistics and checkpoints: what is plain is data, never a pickle."""
