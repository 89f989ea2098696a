"""From picture files to the network's input, and from its output to result files."""
