"""Speed and memory of a model on this machine, against what the machine can do."""
