"""Floor 0: the mathematics of the MPO family. Torch only; tensors in, tensors out."""
