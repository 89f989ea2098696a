"""The reference network U²-Net and its weights."""
