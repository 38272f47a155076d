"""Teachers: the network, or the labels, that the targets come from."""
