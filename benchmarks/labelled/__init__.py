"""Learning from labelled logs: the stand-in for the paper's Table 1."""
